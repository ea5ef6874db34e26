/** Runs a renderer with the specs of the command line, where connections are refused. */

export async function serve(render) {
  const opened = [];
  for (const name of ["WebSocket", "EventSource", "fetch", "setTimeout", "setInterval"]) {
    const original = globalThis[name];
    globalThis[name] = function (...args) {
      opened.push(name);
      return Reflect.construct(original, args);
    };
  }
  const rendered = await render(...JSON.parse(process.argv.at(-1)));
  console.log(JSON.stringify({ ...rendered, opened, hasWindow: "window" in globalThis }));
}
