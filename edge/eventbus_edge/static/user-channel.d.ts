/**
 * The personal channel of a user: `user.` and the id as one token of a channel, in which other
 * characters than letters, digits and _ = @ , ; - are escaped: `user.auth0~7c7`.
 *
 * @throws TypeError if the id is not an integer or a non-empty string of valid Unicode.
 */
export function userChannel(id: string | number): `user.${string}`;
