/** A page of Vue that shows the parts that a test asks for: `show([{ part, id, …props }])`. */

import { connect } from "@eventbus/client";
import {
  EventBusProvider,
  provideEventBus,
  useChannel,
  useChannelState,
  useConnectionState,
  useEvent,
  useEventBus,
  usePresence,
  useWhisper,
} from "@eventbus/vue";
import {
  createApp,
  createSSRApp,
  defineComponent,
  h,
  KeepAlive,
  nextTick,
  reactive,
  ref,
  shallowRef,
  toRef,
  watch,
  watchEffect,
} from "vue";

const part = (setup, props) => defineComponent({ props: ["id", "channel", ...props], setup });

export const parts = {
  Channel: part(
    (props) => {
      const handler = (data, { event }) => log.push([props.id, event + (props.label ?? ""), data]);
      const options = { history: props.history };
      const { status, error } = useChannel(() => props.channel, handler, options);
      return () => h("output", { id: props.id }, error.value?.code ?? status.value);
    },
    ["history", "label"],
  ),
  Handlers: part(
    (props) => {
      const add = (data, message) => log.push([props.id, message?.event ?? data.code, data]);
      const handlers = Object.fromEntries(props.events.map((event) => [event, add]));
      useChannel(() => props.channel, handlers);
      return () => h("output", { id: props.id }, props.events.join());
    },
    ["events"],
  ),
  Event: part(
    (props) => {
      const { id, event } = props;
      const { status } = useEvent(() => props.channel, event, (data) => log.push([id, event, data]));
      return () => h("output", { id }, status.value);
    },
    ["event"],
  ),
  State: part(
    (props) => {
      const { status, data, error, reload } = useChannelState(() => props.channel, {
        load: () => loadState(props.channel),
        // What was read may contain it already: the position is from before the read.
        reduce: (numbers, { data }) => numbers.toSpliced(data, 1, data),
        initial: props.initial,
      });
      return () => {
        const shown = { status: status.value, numbers: data.value, code: error.value?.code };
        return h("button", { id: props.id, onClick: reload }, JSON.stringify(shown));
      };
    },
    ["initial"],
  ),
  Kept: part(
    (props) => {
      const { id, channel } = props;
      const inside = () => (props.mode === "visible" ? h(parts.State, { id, channel }) : null);
      return () => h(KeepAlive, null, inside);
    },
    ["mode"],
  ),
  /** Provides the ref `kept`. */
  Provided: part(
    (props) => {
      provideEventBus(kept);
      const { part: name, ...others } = props.inside;
      return () => h(parts[name], others);
    },
    ["inside"],
  ),
  Presence: part(
    (props) => {
      const { status, members, count, update } = usePresence(() => props.channel);
      return () => {
        const infos = Object.fromEntries(members.value.map(({ user_id, info }) => [user_id, info]));
        const shown = { status: status.value, infos, count: count.value };
        const onClick = () => update(props.changes);
        return h("button", { id: props.id, onClick }, JSON.stringify(shown));
      };
    },
    ["changes"],
  ),
  Whisper: part((props) => {
    const whisper = useWhisper(() => props.channel);
    const send = () =>
      whisper("typing", { at: 1 }).then(
        () => log.push([props.id, "sent"]),
        ({ code }) => log.push([props.id, code]),
      );
    return () => h("button", { id: props.id, onClick: send });
  }, []),
  Connection: part((props) => {
    const connection = useConnectionState();
    const bus = useEventBus();
    watchEffect(() => {
      globalThis.bus = bus.value;
      globalThis.states?.push(connection.value.status);
    });
    return () => {
      const { status, transport, error } = connection.value;
      return h("output", { id: props.id }, JSON.stringify({ status, transport, code: error?.code }));
    };
  }, []),
};

/** An error without a handler is reported as one of the page. */
const Errors = {
  setup() {
    const bus = useEventBus();
    watch(bus, (bus) => bus?.on("error", ({ code }) => errors.push(code)));
    return () => null;
  },
};

const page = (shown) => ({
  render() {
    const { specs, options } = shown.value;
    const token = () => issueToken();
    const provided = { url: "/ws", token, minDelay: 50, maxDelay: 500, ...options };
    return h(EventBusProvider, provided, () => [
      h(Errors),
      ...specs.map(({ part: name, ...props }) => h(parts[name], { key: props.id, ...props })),
    ]);
  },
});

export const ssrApp = (specs, options = {}) => createSSRApp(page(shallowRef({ specs, options })));

if (globalThis.document) {
  Object.assign(globalThis, { connect, reactive, ref, toRef });
  Object.assign(globalThis, { log: [], states: [], errors: [], faults: [] });
  const container = document.createElement("main");
  document.body.append(container);
  const shown = shallowRef();
  let app;
  const mount = (create, specs, options = {}) => {
    shown.value = { specs, options };
    if (app) return nextTick();
    app = create(page(shown));
    app.config.warnHandler = (message) => faults.push(message);
    app.mount(container);
  };
  globalThis.show = (specs, options) => mount(createApp, specs, options);
  globalThis.hydrate = (html, specs, options) => {
    container.innerHTML = html;
    mount(createSSRApp, specs, options);
  };
  globalThis.leave = () => app.unmount();
}
