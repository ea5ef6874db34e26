// Calls methods of the npm package `pusher`: each line of stdin is a method's name and arguments.
import { createInterface } from "node:readline";
import Pusher from "pusher";

const pusher = new Pusher(JSON.parse(process.argv[2]));
for await (const line of createInterface({ input: process.stdin })) {
  const [method, ...args] = JSON.parse(line);
  try {
    const answer = await pusher[method](...args);
    console.log(JSON.stringify({ status: answer?.status, body: answer && (await answer.json()) }));
  } catch (error) {
    console.log(JSON.stringify({ status: error.status, error: error.message }));
  }
}
