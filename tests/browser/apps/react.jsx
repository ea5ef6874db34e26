/** A page of React that shows the parts that a test asks for: `show([{ part, id, …props }])`. */

import { connect } from "@eventbus/client";
import {
  EventBusProvider,
  useChannel,
  useChannelState,
  useConnectionState,
  useEvent,
  useEventBus,
  usePresence,
  useWhisper,
} from "@eventbus/react";
import { Activity, StrictMode, Suspense, use, useEffect } from "react";
import { flushSync } from "react-dom";
import { createRoot, hydrateRoot } from "react-dom/client";

export const parts = {
  /** Hidden, or suspended until `release()`. */
  Hidden({ mode, ...props }) {
    return (
      <Activity mode={mode}>
        <parts.Channel {...props} />
      </Activity>
    );
  },
  Suspended(props) {
    return (
      <Suspense fallback={<output id="waiting" />}>
        <Suspending {...props} />
      </Suspense>
    );
  },
  Channel({ id, channel, history, label = "" }) {
    const handler = (data, { event }) => log.push([id, event + label, data]);
    const { status, error } = useChannel(channel, handler, { history });
    return <output id={id}>{error?.code ?? status}</output>;
  },
  Handlers({ id, channel, events }) {
    const add = (data, message) => log.push([id, message?.event ?? data.code, data]);
    useChannel(channel, Object.fromEntries(events.map((event) => [event, add])));
    return <output id={id}>{events.join()}</output>;
  },
  Event({ id, channel, event }) {
    const { status } = useEvent(channel, event, (data) => log.push([id, event, data]));
    return <output id={id}>{status}</output>;
  },
  State({ id, channel, initial }) {
    const { status, data, error, reload } = useChannelState(channel, {
      load: () => loadState(channel),
      // What was read may contain it already: the position is from before the read.
      reduce: (numbers, { data }) => numbers.toSpliced(data, 1, data),
      initial,
    });
    const shown = { status, numbers: data, code: error?.code };
    return (
      <button id={id} onClick={reload}>
        {JSON.stringify(shown)}
      </button>
    );
  },
  Presence({ id, channel, changes }) {
    const { status, members, count, update } = usePresence(channel);
    const infos = Object.fromEntries(members.map(({ user_id, info }) => [user_id, info]));
    return (
      <button id={id} onClick={() => update(changes)}>
        {JSON.stringify({ status, infos, count })}
      </button>
    );
  },
  Whisper({ id, channel }) {
    const whisper = useWhisper(channel);
    const send = () =>
      whisper("typing", { at: 1 }).then(
        () => log.push([id, "sent"]),
        ({ code }) => log.push([id, code]),
      );
    return <button id={id} onClick={send} />;
  },
  Connection({ id }) {
    const { status, transport, error } = useConnectionState();
    globalThis.bus = useEventBus();
    globalThis.states?.push(status);
    return <output id={id}>{JSON.stringify({ status, transport, code: error?.code })}</output>;
  },
};

let release;
const released = new Promise((resolve) => (release = resolve));

function Suspending({ id, channel }) {
  const { status } = useChannel(channel, (data, { event }) => log.push([id, event, data]));
  const text = use(released);
  return <output id={id}>{status + text}</output>;
}

/** An error without a handler is reported as one of the page. */
function Errors() {
  const bus = useEventBus();
  useEffect(() => bus?.on("error", ({ code }) => errors.push(code)), [bus]);
  return null;
}

export const page = (specs, { isStrict, ...options } = {}) => {
  const shown = specs.map(({ part: name, ...props }) => {
    const Part = parts[name];
    return <Part key={props.id} {...props} />;
  });
  const tree = (
    <EventBusProvider url="/ws" token={() => issueToken()} minDelay={50} maxDelay={500} {...options}>
      <Errors />
      {shown}
    </EventBusProvider>
  );
  return isStrict ? <StrictMode>{tree}</StrictMode> : tree;
};

if (globalThis.document) {
  Object.assign(globalThis, { connect, log: [], states: [], errors: [], faults: [] });
  const onRecoverableError = ({ message }) => faults.push(message);
  const container = document.createElement("main");
  document.body.append(container);
  let root;
  globalThis.show = (specs, options) => {
    root ??= createRoot(container);
    flushSync(() => root.render(page(specs, options)));
  };
  globalThis.hydrate = (html, specs, options) => {
    container.innerHTML = html;
    root = hydrateRoot(container, page(specs, options), { onRecoverableError });
  };
  globalThis.release = release;
  globalThis.leave = () => root.unmount();
}
