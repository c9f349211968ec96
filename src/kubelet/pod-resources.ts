/**
 * The kubelet's word on who has which device: a client of its PodResources API, version 1, on a unix socket. Nothing
 * connects, and gRPC is not even loaded, before the first question.
 *
 * What shapes it, in Kubernetes' source:
 * - `Get` is behind a feature gate, and says so in an error (server_v1.go); older kubelets do not have it. `List` is
 *   always there, and tells of all pods.
 * - Both leave out init containers that are not sidecars, and ephemeral ones. Neither tells a pod's UID.
 * - The kubelet answers 100 questions a second, and 10 at once (constants.go, ratelimit.go), for all who ask. So at most
 *   four calls run; what is asked meanwhile is answered by one `List` for all.
 * - A kubelet that restarts makes its socket anew, and may then have other gates.
 */

import type { DescMethod, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type * as Grpc from "@grpc/grpc-js";
import type { AllocatedClaim, AllocatedDevices, Allocation } from "../policy/allocation.ts";
import { OsError, printable, quote } from "../sys/error.ts";
import type { Files, Stat } from "../sys/sys.ts";
import { type Clock, systemClock } from "./clock.ts";
import { PodResourcesLister, type PodResources as PodResourcesMessage } from "./gen/podresources_pb.js";

/** Bytes of an answer; what the kubelet's own clients take. */
const MAX_ANSWER = 16 << 20;
const MAX_CALLS = 4;
/** Milliseconds before what failed for a passing reason is asked again; doubled each time, up to the second. */
const PAUSE = 25;
const MAX_PAUSE = 400;
/** Characters of the kubelet's own words in a message. */
const MAX_WORDS = 200;

const CLOSED = "the client of the kubelet is closed";

export interface PodName {
  readonly namespace: string;
  readonly pod: string;
}

/** What the kubelet says of the pods of one name. */
export interface PodAnswer {
  readonly method: "Get" | "List";
  /**
   * The containers of each pod of that name, by name. Empty where the kubelet knows none. More than one while a pod
   * that was deleted by force still ends and its successor starts.
   */
  readonly pods: readonly ReadonlyMap<string, Allocation>[];
}

export interface PodResources {
  /**
   * Asks for one pod. What passes (a kubelet that restarts, its limit of questions) is asked again until the time is up.
   *
   * @param timeout milliseconds
   * @throws Error with the reason, in words
   */
  ask(pod: PodName, timeout: number): Promise<PodAnswer>;
  close(): void;
}

interface Question {
  readonly pod: PodName;
  readonly deadline: number;
  readonly settle: (answer: PodAnswer | Error) => void;
  /** `Get` did not find it. */
  listOnly: boolean;
  settled: boolean;
  /** Why it was not answered so far. */
  trouble?: string;
}

interface Connection {
  /** Of the socket (`Stat.stamp`): another socket is another kubelet, or one that was started anew. */
  readonly stamp: string;
  readonly client: Grpc.Client;
  getServed: boolean;
}

/** A gRPC status that is not OK. */
class CallError extends Error {
  readonly status: number;

  constructor(status: number, details: string) {
    super(details);
    this.status = status;
  }
}

/** Numbers of gRPC's status codes, which are the protocol's. */
const CANCELLED = 1;
const UNKNOWN = 2;
const DEADLINE_EXCEEDED = 4;
const NOT_FOUND = 5;
const RESOURCE_EXHAUSTED = 8;
const UNIMPLEMENTED = 12;
const UNAVAILABLE = 14;

export class KubeletClient implements PodResources {
  readonly #files: Files;
  readonly #euid: number;
  readonly #socket: string;
  readonly #clock: Clock;
  #grpc: typeof Grpc | undefined;
  #loading = false;
  #connection: Connection | undefined;
  /** Not settled: those that wait, and those of calls that run. */
  readonly #open = new Set<Question>();
  #waiting: Question[] = [];
  #calls = 0;
  #pause = PAUSE;
  #resume: (() => void) | undefined;
  #closed = false;

  /** @param socket the path, `/var/lib/kubelet/pod-resources/kubelet.sock` on most nodes */
  constructor(files: Files, euid: number, socket: string, clock: Clock = systemClock) {
    this.#files = files;
    this.#euid = euid;
    this.#socket = socket;
    this.#clock = clock;
  }

  ask(pod: PodName, timeout: number): Promise<PodAnswer> {
    return new Promise((resolve, reject) => {
      const cancel = this.#clock.after(timeout, () => {
        const trouble = question.trouble === undefined ? "" : `: ${question.trouble}`;
        question.settle(new Error(`the kubelet did not answer on ${this.#socket} within ${timeout} ms${trouble}`));
      });
      const question: Question = {
        pod,
        deadline: this.#clock.now() + timeout,
        listOnly: false,
        settled: false,
        settle: (answer) => {
          if (question.settled) return;
          question.settled = true;
          this.#open.delete(question);
          cancel();
          if (answer instanceof Error) reject(answer);
          else resolve(answer);
        },
      };
      if (this.#closed) {
        question.settle(new Error(CLOSED));
        return;
      }
      this.#open.add(question);
      this.#waiting.push(question);
      this.#next();
    });
  }

  close(): void {
    this.#closed = true;
    this.#resume?.();
    for (const question of this.#open) question.settle(new Error(CLOSED));
    this.#waiting = [];
    this.#connection?.client.close();
    this.#connection = undefined;
  }

  /** Sends what may be sent now. Called again whenever that may have changed. */
  #next(): void {
    this.#waiting = this.#waiting.filter((question) => !question.settled);
    while (this.#waiting.length > 0 && this.#calls < MAX_CALLS && this.#resume === undefined) {
      const grpc = this.#grpc;
      if (grpc === undefined) {
        this.#load();
        return;
      }
      const connection = this.#connect(grpc);
      if (typeof connection === "string") {
        this.#later(this.#waiting, connection);
        return;
      }
      const questions = this.#waiting;
      this.#waiting = [];
      this.#calls++;
      this.#send(connection, questions).then(
        () => this.#done(),
        (error) => {
          // A defect of ours must not leave a question without an answer.
          for (const question of questions) question.settle(error instanceof Error ? error : new Error(String(error)));
          this.#done();
        },
      );
    }
  }

  #done(): void {
    this.#calls--;
    if (!this.#closed) this.#next();
  }

  #load(): void {
    if (this.#loading) return;
    this.#loading = true;
    import("@grpc/grpc-js").then(
      (grpc) => {
        this.#grpc = grpc;
        this.#next();
      },
      (error) => {
        this.#loading = false;
        for (const question of this.#waiting) question.settle(error as Error);
      },
    );
  }

  /** The connection to the socket that is there now, or why there is none. */
  #connect(grpc: typeof Grpc): Connection | string {
    const stat = this.#look();
    if (typeof stat === "string") return stat;
    if (stat === undefined) return `${this.#socket} does not exist`;
    if (stat.kind !== "socket") return `${this.#socket} is no socket`;
    if (stat.uid !== 0 && stat.uid !== this.#euid) {
      return `${this.#socket} belongs to user ${stat.uid}, and only root's is the kubelet's`;
    }
    if (this.#connection?.stamp === stat.stamp) return this.#connection;
    this.#connection?.client.close();
    const client = new grpc.Client(`unix:${this.#socket}`, grpc.credentials.createInsecure(), {
      "grpc.max_receive_message_length": MAX_ANSWER,
      "grpc.enable_http_proxy": 0,
      // We look at the socket before each attempt ourselves.
      "grpc.initial_reconnect_backoff_ms": PAUSE,
      "grpc.max_reconnect_backoff_ms": MAX_PAUSE,
      // Another kubelet on the same path gets another connection.
      "grpc.use_local_subchannel_pool": 1,
    });
    this.#connection = { stamp: stat.stamp, client, getServed: true };
    return this.#connection;
  }

  #look(): Stat | string | undefined {
    try {
      return this.#files.stat(this.#socket);
    } catch (error) {
      if (!(error instanceof OsError)) throw error;
      return `${this.#socket} cannot be looked at (${error.code})`;
    }
  }

  async #send(connection: Connection, questions: readonly Question[]): Promise<void> {
    const [first] = questions as readonly [Question];
    const useGet = questions.length === 1 && connection.getServed && !first.listOnly;
    const deadline = Math.max(...questions.map((question) => question.deadline)) - this.#clock.now();
    try {
      if (useGet) first.settle(await get(connection, first.pod, deadline));
      else await list(connection, questions, deadline);
      this.#pause = PAUSE;
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      this.#failed(connection, questions, useGet, error);
    }
  }

  #failed(connection: Connection, questions: readonly Question[], useGet: boolean, error: CallError): void {
    const words = error.message.length > MAX_WORDS ? `${error.message.slice(0, MAX_WORDS)}...` : error.message;
    const trouble = printable(words);
    if (useGet && (error.status === UNIMPLEMENTED || /\bGet method disabled\b/.test(words))) {
      connection.getServed = false;
      this.#waiting.push(...questions);
    } else if (useGet && (error.status === UNKNOWN || error.status === NOT_FOUND) && /\bnot found$/.test(words)) {
      // The kubelet finds pods by name in a table that loses its entry when a pod of that name is deleted by force
      // after its successor came. List goes through all pods.
      for (const question of questions) question.listOnly = true;
      this.#waiting.push(...questions);
    } else if (
      error.status === UNAVAILABLE ||
      error.status === CANCELLED ||
      (error.status === RESOURCE_EXHAUSTED && /\brate limit\b/.test(words))
    ) {
      this.#later(questions, trouble);
    } else if (error.status === DEADLINE_EXCEEDED) {
      // The timers of the questions are about to tell.
      this.#later(questions);
    } else {
      const method = useGet ? "Get" : "List";
      const answer = new Error(`the kubelet answered PodResources ${method} with an error: ${trouble}`);
      for (const question of questions) question.settle(answer);
    }
  }

  /** Asks again, together with all that comes until then. */
  #later(questions: readonly Question[], trouble?: string): void {
    if (trouble !== undefined) for (const question of questions) question.trouble = trouble;
    if (questions !== this.#waiting) this.#waiting.push(...questions);
    if (this.#resume !== undefined || this.#closed) return;
    const cancel = this.#clock.after(this.#pause, () => {
      this.#resume = undefined;
      this.#next();
    });
    this.#resume = () => {
      cancel();
      this.#resume = undefined;
    };
    this.#pause = Math.min(2 * this.#pause, MAX_PAUSE);
  }
}

function call<M extends DescMethod>(
  client: Grpc.Client,
  method: M,
  request: MessageInitShape<M["input"]>,
  timeout: number,
): Promise<MessageShape<M["output"]>> {
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest<Uint8Array, MessageShape<M["output"]>>(
      `/${method.parent.typeName}/${method.name}`,
      (bytes) => Buffer.from(bytes),
      (bytes) => fromBinary(method.output, bytes) as MessageShape<M["output"]>,
      toBinary(method.input, create(method.input, request)),
      { deadline: Date.now() + timeout },
      (error, response) => {
        if (error !== null) reject(new CallError(error.code, error.details));
        else if (response === undefined) reject(new CallError(UNKNOWN, "there is no answer"));
        else resolve(response);
      },
    );
  });
}

async function get(connection: Connection, pod: PodName, timeout: number): Promise<PodAnswer | Error> {
  const { podResources } = await call(
    connection.client,
    PodResourcesLister.method.get,
    { podName: pod.pod, podNamespace: pod.namespace },
    timeout,
  );
  if (podResources === undefined || !isOf(podResources, pod)) {
    const other = podResources === undefined ? "no pod" : `${podResources.namespace}/${podResources.name}`;
    return new Error(`the kubelet was asked for ${quote(`${pod.namespace}/${pod.pod}`)} and told of ${quote(other)}`);
  }
  return answerOf("Get", [podResources]);
}

async function list(connection: Connection, questions: readonly Question[], timeout: number): Promise<void> {
  const { podResources } = await call(connection.client, PodResourcesLister.method.list, {}, timeout);
  const byName = new Map<string, PodResourcesMessage[]>();
  for (const pod of podResources) {
    // Neither may hold a slash.
    const name = `${pod.namespace}/${pod.name}`;
    const others = byName.get(name);
    if (others === undefined) byName.set(name, [pod]);
    else others.push(pod);
  }
  for (const question of questions) {
    const pods = byName.get(`${question.pod.namespace}/${question.pod.pod}`) ?? [];
    question.settle(answerOf("List", pods));
  }
}

function answerOf(method: PodAnswer["method"], pods: readonly PodResourcesMessage[]): PodAnswer | Error {
  try {
    return { method, pods: pods.map(containersOf) };
  } catch (error) {
    return error as Error;
  }
}

function isOf(pod: PodResourcesMessage, asked: PodName): boolean {
  return pod.name === asked.pod && pod.namespace === asked.namespace;
}

function containersOf(pod: PodResourcesMessage): Map<string, Allocation> {
  const containers = new Map<string, Allocation>();
  for (const container of pod.containers) {
    if (containers.has(container.name)) {
      throw new Error(`the kubelet told of two containers ${quote(container.name)} in one pod`);
    }
    // A message for each device, or for each NUMA node: one for each resource is meant.
    const ids = new Map<string, Set<string>>();
    for (const { resourceName, deviceIds } of container.devices) {
      const known = ids.get(resourceName) ?? new Set();
      ids.set(resourceName, known);
      for (const id of deviceIds) known.add(id);
    }
    const devices: AllocatedDevices[] = [...ids].map(([resource, set]) => ({ resource, ids: [...set] }));
    const claims: AllocatedClaim[] = container.dynamicResources.flatMap((claim) =>
      claim.claimResources.map((device) => ({
        namespace: claim.claimNamespace,
        name: claim.claimName,
        driver: device.driverName,
        pool: device.poolName,
        device: device.deviceName,
        cdiDevices: device.cdiDevices.map(({ name }) => name),
      })),
    );
    containers.set(container.name, { devices, claims });
  }
  return containers;
}
