import { connect } from "@eventbus/client";
import { channelStore, connectionStore, presenceStore, stateStore } from "@eventbus/client/stores";
import { computed, defineComponent, inject, onMounted, provide, shallowRef, toValue, watch } from "vue";

const KEY = Symbol("eventbus");

const isBus = (given) => given === null || typeof given.subscribe === "function";

const tokenOf = (given) => (typeof given === "function" ? given() : given);

/**
 * Give all components below a bus: an open one, or options to open it once this component is
 * mounted, so never on a server, and to close it with the component.
 */
export function provideEventBus(given) {
  const first = toValue(given);
  const bus = shallowRef(isBus(first) ? first : null);
  provide(KEY, bus);
  const source = () => {
    const value = toValue(given);
    if (isBus(value)) return value;
    const { token: _, ...options } = value;
    return JSON.stringify(options); // also of URL objects
  };
  const open = (source, _, onCleanup) => {
    if (typeof source !== "string") return void (bus.value = source);
    const token = () => tokenOf(toValue(given).token);
    const opened = connect({ ...JSON.parse(source), token });
    onCleanup(() => opened.close());
    bus.value = opened;
  };
  onMounted(() => watch(source, open, { immediate: true }));
  return bus;
}

export const EventBusProvider = defineComponent({
  name: "EventBusProvider",
  props: ["bus", "url", "token", "sseUrl", "minDelay", "maxDelay"],
  setup(props, { slots }) {
    provideEventBus(() => {
      const { bus, ...options } = props;
      return bus === undefined ? options : bus;
    });
    return () => slots.default?.();
  },
});

export function useEventBus() {
  const bus = inject(KEY, null);
  if (!bus) throw new Error("This component needs an <EventBusProvider> around it.");
  return bus;
}

/** A store has no effects until it is listened to: on a server, nothing starts. */
function useStore(make) {
  const bus = useEventBus();
  const store = computed(() => make(bus.value));
  const snapshot = shallowRef(store.value.get());
  const listen = (store, _, onCleanup) => {
    const read = () => (snapshot.value = store.get());
    onCleanup(store.subscribe(read));
    read();
  };
  onMounted(() => watch(store, listen, { immediate: true }));
  return { store, snapshot };
}

const refs = (snapshot) => {
  const names = Object.keys(snapshot.value);
  return Object.fromEntries(names.map((name) => [name, computed(() => snapshot.value[name])]));
};

export function useChannel(channel, handlers, { history } = {}) {
  const make = (bus) => channelStore(bus, toValue(channel), () => handlers, { history });
  return refs(useStore(make).snapshot);
}

export function useEvent(channel, event, handler, options) {
  return useChannel(channel, { [event]: handler }, options);
}

export function useChannelState(channel, options) {
  let first;
  const make = (bus) => {
    const name = toValue(channel);
    first ||= name; // the one that `initial` is the state of
    const initial = name === first ? options.initial : null;
    return stateStore(bus, name, { ...options, initial });
  };
  const { store, snapshot } = useStore(make);
  return { ...refs(snapshot), reload: () => store.value.reload() };
}

export function usePresence(channel) {
  const { store, snapshot } = useStore((bus) => presenceStore(bus, toValue(channel)));
  return { ...refs(snapshot), update: (changes) => store.value.update(changes) };
}

export function useConnectionState() {
  return useStore(connectionStore).snapshot;
}

export function useWhisper(channel) {
  const { store } = useStore((bus) => channelStore(bus, toValue(channel)));
  return (event, data) => store.value.whisper(event, data);
}
