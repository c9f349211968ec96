/**
 * One connection to a runtime, from registration to its end. The runtime calls the plugin on one channel, and there are
 * no calls the other way but the registration: the runtime holds a lock while it waits for a handler, so a call back
 * from inside one would wait for itself.
 */

import { create, toBinary } from "@bufbuild/protobuf";
import { errorLine, quote, reasonOf, SluiceError } from "../sys/error.ts";
import { Client } from "../ttrpc/client.ts";
import { type CallContext, type Implementation, type RawMethod, Server } from "../ttrpc/server.ts";
import { ClosedError, Code, TtrpcError } from "../ttrpc/status.ts";
import type { ByteStream } from "../ttrpc/stream.ts";
import type { Timers } from "../ttrpc/timers.ts";
import {
  type Container,
  type ContainerAdjustment,
  CreateContainerResponseSchema,
  Event,
  Plugin,
  type PodSandbox,
  Runtime as RuntimeService,
  type ValidateContainerAdjustmentRequest,
} from "./gen/nri_pb.js";
import { Mux, PLUGIN_CHANNEL, RUNTIME_CHANNEL } from "./mux.ts";
import {
  type Latin1,
  type Layout,
  OWN_CALL,
  type ReadContainer,
  type ReadPod,
  readSubject,
  STATE_CHANGE,
  type Subject,
} from "./subject.ts";
import { isAtLeast, type NriVersion, nriVersion, versionText } from "./version.ts";

/** The runtime at the other end, as it says of itself in Configure. */
export interface Runtime {
  /** `containerd`, `cri-o` or `docker`. */
  readonly name: string;
  /** Like `v2.1.4`, `2.1.9+unknown`, `1.34.0`. */
  readonly version: string;
  readonly nri: NriVersion;
  /** Milliseconds after which it goes on without a plugin that has not answered, and hangs up on it. */
  readonly requestTimeout: number;
}

type Result<T> = T | Promise<T>;

/**
 * What the runtime asks, and tells. Those that are there make up the events that the plugin subscribes to. The runtime
 * asks one thing at a time, of all plugins and for all containers of the node, so each must be quick.
 *
 * What a handler of runPodSandbox, createContainer, startContainer or validateContainerAdjustment throws fails the call
 * of the kubelet, and its text is in the pod's events; elsewhere the runtime only logs it.
 */
export interface Handlers {
  /** @param config of a launched plugin, the text of its file in /etc/nri/conf.d */
  configure?(runtime: Runtime, config: string): Result<void>;
  /** All pods and containers that there are, once, before any other event. */
  synchronize?(pods: readonly PodSandbox[], containers: readonly Container[], runtime: Runtime): Result<void>;
  runPodSandbox?(pod: ReadPod): Result<void>;
  stopPodSandbox?(pod: ReadPod): Result<void>;
  removePodSandbox?(pod: ReadPod): Result<void>;
  /**
   * @param request as it came, a CreateContainerRequest, for who wants more of it than is read
   * @returns one that is answered again, and has not been changed, is not encoded again
   */
  createContainer?(
    pod: ReadPod,
    container: ReadContainer,
    runtime: Runtime,
    request: Uint8Array,
  ): Result<ContainerAdjustment | undefined>;
  postCreateContainer?(pod: ReadPod, container: ReadContainer): Result<void>;
  startContainer?(pod: ReadPod, container: ReadContainer): Result<void>;
  /** A creation that failed brings this and the next, too. */
  stopContainer?(pod: ReadPod, container: ReadContainer): Result<void>;
  removeContainer?(pod: ReadPod, container: ReadContainer): Result<void>;
  /** Asked from NRI 0.10 on. @returns why the container must not be created; `undefined` where it may */
  validateContainerAdjustment?(request: ValidateContainerAdjustmentRequest): Result<string | undefined>;
}

/** Events by the handlers of them. */
const EVENTS = {
  runPodSandbox: Event.RUN_POD_SANDBOX,
  stopPodSandbox: Event.STOP_POD_SANDBOX,
  removePodSandbox: Event.REMOVE_POD_SANDBOX,
  createContainer: Event.CREATE_CONTAINER,
  postCreateContainer: Event.POST_CREATE_CONTAINER,
  startContainer: Event.START_CONTAINER,
  stopContainer: Event.STOP_CONTAINER,
  removeContainer: Event.REMOVE_CONTAINER,
  validateContainerAdjustment: Event.VALIDATE_CONTAINER_ADJUSTMENT,
} as const satisfies Partial<Record<keyof Handlers, Event>>;

/** Those that are told. */
type ToldEvent = Exclude<keyof typeof EVENTS, "createContainer" | "validateContainerAdjustment">;

/** Since when the events after REMOVE_CONTAINER are there. A runtime refuses a plugin that asks for what it lacks. */
const LATER_EVENTS = 10;

/** What we say that we speak. The runtime logs it. */
const SPOKEN = "v0.12.2";

/**
 * Milliseconds until the runtime has asked all that comes before the first event. It takes plugins one after the other,
 * and each that hangs holds up the next for 5 s and more: so longer than that.
 */
const PATIENCE = 60_000;

/** The default of all runtimes; before 0.8 they do not tell it. */
const REQUEST_TIMEOUT = 2_000;

/**
 * Of the time that the runtime gives, the part after which a handler that has not answered is answered for. When all of
 * it is over, the runtime creates the container without the plugin, and hangs up; an error is the end of the creation
 * alone.
 */
const IN_TIME = 0.75;

/** Pods and containers: ten times what the largest node has. */
const MAX_OBJECTS = 100_000;

export interface SessionOptions {
  /** Letters, digits and `_.+-`. The runtime gives it in its errors: `plugins "90-sluice" and ...`. */
  readonly name: string;
  /** Two digits: plugins are called in this order. */
  readonly index: string;
  readonly handlers: Handlers;
  readonly timers: Timers;
  /** What the system makes characters of bytes with, quicker than we could. */
  readonly latin1?: Latin1;
  /** Called when the runtime has taken the plugin and told it all that there is; events follow. */
  readonly onReady?: (runtime: Runtime) => void;
}

export interface Session {
  /**
   * Kept when the connection has ended, with why: SluiceError E_NRI_REFUSED, E_NRI_PROTOCOL or E_NRI_CLOSED; `undefined`
   * after `close`.
   */
  readonly closed: Promise<SluiceError | undefined>;
  /** Ends it, with all that is in flight. */
  close(): void;
}

/** Registers with the runtime at the other end of `trunk`, which must not have been started. */
export function startSession(trunk: ByteStream, options: SessionOptions): Session {
  const { name, index, handlers, timers, latin1, onReady } = options;
  const mux = new Mux(trunk);
  let timer: unknown;
  let isOver = false;
  let why: SluiceError | undefined;
  let resolve: (why: SluiceError | undefined) => void = () => {};
  const closed = new Promise<SluiceError | undefined>((kept) => {
    resolve = kept;
  });
  const end = (reason: SluiceError | undefined): void => {
    if (isOver) return;
    isOver = true;
    why = reason;
    timers.clear(timer);
    mux.close();
  };
  const lost = (error: Error | undefined): void => end(closedError(error));

  const server = new Server({ timers });
  const { calls, raw } = serve(handlers, timers, latin1, (runtime) => {
    timers.clear(timer);
    onReady?.(runtime);
  });
  server.add(Plugin, calls);
  for (const [method, handler] of raw) server.addRaw(Plugin.typeName, method, handler);
  // Served before anything is said: the runtime may configure the plugin before it answers the registration.
  server.serve(mux.open(PLUGIN_CHANNEL)).closed.then(lost, lost);
  const client = new Client(mux.open(RUNTIME_CHANNEL), { timers });
  client.closed.then(lost, lost);
  // Why it has ended is known a turn after, from a channel, if it was not us who ended it.
  mux.start(() => void client.closed.then(() => resolve(why)));
  timer = timers.set(PATIENCE, () => end(refused(name, index, `it has not configured it within ${PATIENCE / 1000} s`)));
  client
    .unary(
      RuntimeService.method.registerPlugin,
      { pluginName: name, pluginIdx: index, NRIVersion: SPOKEN },
      { timeoutMs: PATIENCE },
    )
    // A runtime leaves the connection open on which it has refused a plugin, and says nothing more.
    .catch((error: unknown) => {
      end(error instanceof ClosedError ? closedError(undefined) : refused(name, index, reasonOf(error)));
    });
  return { closed, close: () => end(undefined) };
}

function refused(name: string, index: string, why: string): SluiceError {
  return new SluiceError(
    "E_NRI_REFUSED",
    `the container runtime has not taken the NRI plugin ${quote(`${index}-${name}`)}: ${why}`,
    "look into the runtime's log for what it says of plugins",
  );
}

function closedError(error: Error | undefined): SluiceError {
  if (error instanceof SluiceError) return error;
  return new SluiceError(
    "E_NRI_CLOSED",
    `the container runtime has closed its NRI connection${error === undefined ? "" : ` (${error.message})`}`,
    "nothing if it was restarted, else look into its log for why: a plugin that does not answer in time is cut off, say",
  );
}

interface Served {
  readonly calls: Implementation<typeof Plugin>;
  /** Those that containers wait for, by their names. */
  readonly raw: ReadonlyMap<string, RawMethod>;
}

/** What a runtime expects of a plugin, over our handlers. */
function serve(
  handlers: Handlers,
  timers: Timers,
  latin1: Latin1 | undefined,
  onReady: (runtime: Runtime) => void,
): Served {
  let runtime: Runtime | undefined;
  let pods: PodSandbox[] = [];
  let containers: Container[] = [];
  const known = (): Runtime => {
    if (runtime !== undefined) return runtime;
    throw new TtrpcError(Code.FailedPrecondition, "the plugin has not been configured");
  };
  /** An answer as the handler's result, at once where that is no promise; or an error, in time. */
  const answer = <T, A>(context: CallContext, handle: () => Result<T>, toAnswer: (result: T) => A): Result<A> => {
    try {
      const result = handle();
      return result instanceof Promise ? inTime(result, context, timers).then(toAnswer).catch(fail) : toAnswer(result);
    } catch (thrown) {
      return fail(thrown);
    }
  };
  /** The events that are only told. Before each had a call of its own all came as StateChange, but stopContainer. */
  const told: Readonly<Record<ToldEvent, (of: Subject) => Result<void> | undefined>> = {
    runPodSandbox: (of) => handlers.runPodSandbox?.(podOf(of)),
    stopPodSandbox: (of) => handlers.stopPodSandbox?.(podOf(of)),
    removePodSandbox: (of) => handlers.removePodSandbox?.(podOf(of)),
    postCreateContainer: (of) => handlers.postCreateContainer?.(podOf(of), containerOf(of)),
    startContainer: (of) => handlers.startContainer?.(podOf(of), containerOf(of)),
    stopContainer: (of) => handlers.stopContainer?.(podOf(of), containerOf(of)),
    removeContainer: (of) => handlers.removeContainer?.(podOf(of), containerOf(of)),
  };
  const names = Object.keys(told) as ToldEvent[];
  const calls: Implementation<typeof Plugin> = {
    configure: ({ config, runtimeName, runtimeVersion, NRIVersion, requestTimeout }, context) => {
      runtime = {
        name: runtimeName,
        version: runtimeVersion,
        nri: nriVersion(NRIVersion, runtimeName, runtimeVersion),
        requestTimeout: Number(requestTimeout) || REQUEST_TIMEOUT,
      };
      const { nri } = runtime;
      return answer(
        context,
        () => handlers.configure?.(known(), config),
        () => ({ events: eventMask(handlers, nri) }),
      );
    },
    // In parts where it is much. Each but the last is answered with no more than that there are more.
    synchronize: (request, context) => {
      pods = pods.concat(request.pods);
      containers = containers.concat(request.containers);
      if (pods.length + containers.length > MAX_OBJECTS) {
        [pods, containers] = [[], []];
        throw new TtrpcError(Code.InvalidArgument, `there are more than ${MAX_OBJECTS} pods and containers`);
      }
      if (request.more) return { more: true };
      const all = { pods, containers };
      [pods, containers] = [[], []];
      return answer(
        context,
        () => handlers.synchronize?.(all.pods, all.containers, known()),
        () => {
          onReady(known());
          return {};
        },
      );
    },
    // The end of the connection follows.
    shutdown: nothing,
    validateContainerAdjustment: (request, context) =>
      answer(
        context,
        () => handlers.validateContainerAdjustment?.(request),
        (reason) => (reason === undefined ? {} : { reject: true, reason }),
      ),
  };
  const raw = new Map<string, RawMethod>();
  const serveRaw = (
    { name }: { readonly name: string },
    layout: Layout,
    handle: (subject: Subject, context: CallContext, bytes: Uint8Array) => Result<Uint8Array>,
  ) =>
    raw.set(name, {
      kind: "unary",
      handle: (bytes, context) => handle(decodeSubject(name, bytes, layout, latin1), context, bytes),
    });
  for (const name of names) {
    serveRaw(Plugin.method[name], OWN_CALL, (of, context) => answer(context, () => told[name](of), nothingSaid));
  }
  serveRaw(Plugin.method.stateChange, STATE_CHANGE, (of, context) => {
    const name = names.find((one) => EVENTS[one] === of.event);
    return name === undefined ? NOTHING : answer(context, () => told[name](of), nothingSaid);
  });
  serveRaw(Plugin.method.createContainer, OWN_CALL, (of, context, bytes) => {
    const handle = () => handlers.createContainer?.(podOf(of), containerOf(of), known(), bytes);
    return answer(context, handle, encodeCreation);
  });
  return { calls, raw };
}

/** @throws TtrpcError */
function decodeSubject(name: string, bytes: Uint8Array, layout: Layout, latin1: Latin1 | undefined): Subject {
  try {
    return readSubject(bytes, layout, latin1);
  } catch (thrown) {
    throw new TtrpcError(Code.Internal, `cannot decode the request ${name}: ${reasonOf(thrown)}`);
  }
}

const NOTHING = new Uint8Array(0);

function nothingSaid(): Uint8Array {
  return NOTHING;
}

/** Answers by their adjustments. */
const encoded = new WeakMap<ContainerAdjustment, Uint8Array>();

function encodeCreation(adjust: ContainerAdjustment | undefined): Uint8Array {
  if (adjust === undefined) return NOTHING;
  const before = encoded.get(adjust);
  if (before !== undefined) return before;
  const bytes = toBinary(CreateContainerResponseSchema, create(CreateContainerResponseSchema, { adjust }));
  encoded.set(adjust, bytes);
  return bytes;
}

function podOf({ pod }: Subject): ReadPod {
  if (pod !== undefined) return pod;
  throw new TtrpcError(Code.InvalidArgument, "the request has no pod");
}

function containerOf({ container }: Subject): ReadContainer {
  if (container !== undefined) return container;
  throw new TtrpcError(Code.InvalidArgument, "the request has no container");
}

function nothing(): Record<string, never> {
  return {};
}

/** A handler's result, or an error where it does not come in time. */
function inTime<T>(result: Promise<T>, context: CallContext, timers: Timers): Promise<T> {
  const remaining = context.remainingMs();
  if (remaining === undefined) return result;
  const ms = remaining * IN_TIME;
  return new Promise((resolve, reject) => {
    const timer = timers.set(ms, () =>
      reject(
        new SluiceError(
          "E_NRI_LATE",
          `what was asked of the plugin is not done after ${Math.round(ms)} ms, and the container runtime waits little longer`,
          "nothing where it is tried again, as a kubelet does; else look into the log of sluiced for what holds it up",
        ),
      ),
    );
    result.then(resolve, reject).finally(() => timers.clear(timer));
  });
}

/** The runtime hands the text on to whoever asked it for the container. @throws TtrpcError */
function fail(thrown: unknown): never {
  throw thrown instanceof TtrpcError ? thrown : new TtrpcError(Code.Unknown, errorLine(thrown), [], thrown);
}

/**
 * The events that there are handlers for and that the runtime has. Never none, which it would take for all.
 *
 * @throws SluiceError E_NRI_UNSUPPORTED
 */
export function eventMask(handlers: Handlers, nri: NriVersion): number {
  const last = isAtLeast(nri, LATER_EVENTS) ? Event.VALIDATE_CONTAINER_ADJUSTMENT : Event.REMOVE_CONTAINER;
  let mask = 0;
  for (const [name, event] of Object.entries(EVENTS)) {
    if (handlers[name as keyof Handlers] !== undefined && event <= last) mask |= 1 << (event - 1);
  }
  if (mask !== 0) return mask;
  throw new SluiceError(
    "E_NRI_UNSUPPORTED",
    `NRI ${versionText(nri)} has none of the events that the plugin handles`,
    "use a runtime with a later NRI",
  );
}
