// Laravel Echo over pusher-js, as a page would use it. Each line of stdin is a program, which sees
// `echo`, `pusher` and `say`; what it says becomes a line of stdout.
import { createInterface } from "node:readline";
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import { withResume } from "./resume.js";

const say = (...words) => console.log(JSON.stringify(words));
const { resumes, ...options } = JSON.parse(process.argv[2]);
const echo = new Echo({ Pusher: resumes ? withResume(Pusher) : Pusher, ...options });
const pusher = echo.connector.pusher;
pusher.connection.bind("state_change", ({ current }) => say("state", current));
pusher.connection.bind("error", ({ data, error }) => say("error", (data ?? error?.data)?.code));
const state = {};
for await (const line of createInterface({ input: process.stdin })) {
  new Function("echo", "pusher", "say", "state", JSON.parse(line))(echo, pusher, say, state);
}
pusher.disconnect();
