/**
 * The personal channel of a user: `user.` and the id as one token.
 *
 * Letters, digits and _ = @ , ; - stand for themselves. Any other character becomes `~` and two
 * lowercase hexadecimal digits for each byte of its UTF-8: `userChannel("auth0|7")` is
 * `user.auth0~7c7`. docs/access.md describes the encoding.
 *
 * @throws TypeError if the id is not an integer or a non-empty string of valid Unicode.
 */
export function userChannel(id) {
  const text = Number.isSafeInteger(id) ? String(id) : id;
  if (typeof text !== "string" || !text || /\p{Surrogate}/u.test(text)) {
    throw new TypeError("the id of a user is an integer or a non-empty string of valid Unicode");
  }
  return `user.${text.replace(/[^A-Za-z0-9_=@,;-]/gu, escaped)}`;
}

function escaped(character) {
  const bytes = [...new TextEncoder().encode(character)];
  return bytes.map((byte) => `~${byte.toString(16).padStart(2, "0")}`).join("");
}
