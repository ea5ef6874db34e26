/** Renders the page of react.jsx in Node: specs in, HTML out, and nothing else may happen. */

import { connect } from "@eventbus/client";
import { renderToString } from "react-dom/server";
import { page } from "./react.jsx";
import { serve } from "./server.js";

await serve((specs, options) => {
  const own = renderToString(page(specs, options));
  const given = renderToString(page(specs, { bus: connect({ url: "/ws" }) }));
  return { own, given };
});
