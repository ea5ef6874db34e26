/** Renders the page of vue.js in Node: specs in, HTML out, and nothing else may happen. */

import { connect } from "@eventbus/client";
import { renderToString } from "@vue/server-renderer";
import { serve } from "./server.js";
import { ssrApp } from "./vue.js";

await serve(async (specs, options) => {
  const own = await renderToString(ssrApp(specs, options));
  const given = await renderToString(ssrApp(specs, { bus: connect({ url: "/ws" }) }));
  return { own, given };
});
