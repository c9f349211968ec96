/**
 * A kubelet's side of the Container Runtime Interface, for tests: pods and containers over gRPC on an engine's unix
 * socket. `connect` gives every call of cri/cri.proto, typed; `pod` and `container` are what most tests want, and go
 * with the test.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  create,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import {
  type ContainerConfigSchema,
  ContainerState,
  type ContainerStatus,
  ImageService,
  type LinuxContainerResourcesSchema,
  NamespaceMode,
  type NamespaceOptionSchema,
  type PodSandboxConfigSchema,
  RuntimeService,
} from "./cri/gen/cri_pb.js";
import type { Owner } from "./machine.ts";

export { ContainerState, NamespaceMode } from "./cri/gen/cri_pb.js";

/** A call that the runtime refused, or did not answer. */
export class CriError extends Error {
  override readonly name = "CriError";
  /** As gRPC names it: `NOT_FOUND`, `INVALID_ARGUMENT`, `UNKNOWN` (most of what an OCI runtime says), `UNAVAILABLE`. */
  readonly code: string;
  /** The runtime's own words. */
  readonly details: string;

  constructor(method: string, code: string, details: string) {
    super(`${method}: ${code}: ${details}`);
    this.code = code;
    this.details = details;
  }
}

/** The calls of a service: each takes the fields of its request that are not their default. */
type Calls<S extends DescService> = {
  readonly [M in keyof S["method"]]: (
    request?: MessageInitShape<S["method"][M]["input"]>,
  ) => Promise<MessageShape<S["method"][M]["output"]>>;
};

interface CallOptions {
  readonly deadline?: number;
  /** Wait for a socket that nobody answers on yet, until the deadline. */
  readonly waitForReady?: boolean;
}

/** Milliseconds: longer than anything here takes on a slow machine, so that a runtime that hangs fails its test. */
const PATIENCE = 120_000;
/** Milliseconds between two looks at something that changes without a word. */
const POLL = 50;

function calls<S extends DescService>(client: grpc.Client, service: S, options: CallOptions = {}): Calls<S> {
  const bound: Record<string, (request?: Record<string, unknown>) => Promise<unknown>> = {};
  for (const method of service.methods) {
    bound[method.localName] = (request = {}) =>
      new Promise((resolve, reject) => {
        client.makeUnaryRequest(
          `/${service.typeName}/${method.name}`,
          (message: Record<string, unknown>) => Buffer.from(toBinary(method.input, create(method.input, message))),
          (bytes: Buffer) => fromBinary(method.output, bytes),
          request,
          new grpc.Metadata({ waitForReady: options.waitForReady ?? false }),
          { deadline: Date.now() + (options.deadline ?? PATIENCE) },
          (error, response) => {
            if (error === null) resolve(response);
            else reject(new CriError(method.name, grpc.status[error.code] ?? String(error.code), error.details));
          },
        );
      });
  }
  return bound as Calls<S>;
}

export interface Cri {
  readonly runtime: Calls<typeof RuntimeService>;
  readonly image: Calls<typeof ImageService>;
  /** The engine's `/` as it is seen from here; empty where it is our own. */
  readonly root: string;
  /** Waits until the engine answers, as after its start or restart. @throws CriError DEADLINE_EXCEEDED */
  ready(): Promise<void>;
  /** Removes what `pod` made and is still there, and hangs up. */
  close(): Promise<void>;
}

const living = new WeakMap<Cri, Set<Pod>>();

/**
 * Connects to the engine that listens on `socket`, a path as it is seen from here. Hangs up when its owner (a test's
 * context) is done.
 *
 * @param root the engine's `/` as it is seen from here
 */
export function connect(owner: Owner, socket: string, root = ""): Cri {
  const client = new grpc.Client(`unix://${path.resolve(socket)}`, grpc.credentials.createInsecure(), {
    // As a kubelet has it.
    "grpc.max_receive_message_length": 16 << 20,
    "grpc.initial_reconnect_backoff_ms": POLL,
    "grpc.max_reconnect_backoff_ms": 4 * POLL,
    // A connection of its own: one to an engine that ended must not be met by the next on the same path.
    "grpc.use_local_subchannel_pool": 1,
  });
  const pods = new Set<Pod>();
  const patient = calls(client, RuntimeService, { waitForReady: true });
  const cri: Cri = {
    runtime: calls(client, RuntimeService),
    image: calls(client, ImageService),
    root,
    async ready() {
      for (const end = Date.now() + PATIENCE; ; ) {
        try {
          await patient.version();
          return;
        } catch (error) {
          // What was asked of an engine that ended meanwhile is lost, and must be asked of the next.
          if (!(error instanceof CriError) || error.code !== "UNAVAILABLE" || Date.now() > end) throw error;
        }
      }
    },
    async close() {
      try {
        await Promise.all([...pods].map((pod) => pod.remove()));
      } catch (error) {
        // The engine has ended before us, and its containers with it.
        if (!(error instanceof CriError) || error.code !== "UNAVAILABLE") throw error;
      } finally {
        pods.clear();
        client.close();
      }
    },
  };
  living.set(cri, pods);
  owner.after(() => cri.close());
  return cri;
}

/** Fields of a message, all optional, to add to those that the options say. */
type Fields<Schema extends Parameters<typeof create>[0]> = MessageInitShape<Schema>;

export interface PodOptions {
  /** The engine's runtime handler (a RuntimeClass names it); its default where left out. */
  readonly handler?: string;
  readonly name?: string;
  /** One that no other pod has, where left out. */
  readonly uid?: string;
  readonly labels?: Record<string, string>;
  readonly annotations?: Record<string, string>;
  /**
   * By default a process namespace for each container, as a kubelet has it, and the node's network: without a network
   * plugin there is no other.
   */
  readonly namespaces?: Fields<typeof NamespaceOptionSchema>;
  readonly privileged?: boolean;
  readonly cgroupParent?: string;
}

export interface Pod {
  readonly id: string;
  readonly cri: Cri;
  readonly config: Fields<typeof PodSandboxConfigSchema>;
  readonly metadata: { readonly name: string; readonly uid: string; readonly namespace: string };
  readonly namespaces: Fields<typeof NamespaceOptionSchema>;
  readonly privileged: boolean;
  /** Ends its containers. Once more does nothing. */
  stop(): Promise<void>;
  /** Stops and removes it with its containers. Once more does nothing. */
  remove(): Promise<void>;
}

let count = 0;

/** A name that no other pod or container of this process has. */
function fresh(what: string): string {
  return `${what}-${process.pid}-${count++}`;
}

/** What a kubelet labels a pod's sandbox and containers with (Kubernetes, pkg/kubelet/kuberuntime/labels.go). */
function podLabels({ name, namespace, uid }: { name: string; namespace: string; uid: string }): Record<string, string> {
  return { "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid };
}

/**
 * Runs a pod sandbox, removed when its owner (a test's context) is done. The logs of its containers lie in the engine's
 * /var/log/pods.
 *
 * @throws CriError with what the engine says
 */
export async function pod(owner: Owner, cri: Cri, options: PodOptions = {}): Promise<Pod> {
  const name = options.name ?? fresh("pod");
  const namespaces = { network: NamespaceMode.NODE, pid: NamespaceMode.CONTAINER, ...options.namespaces };
  const privileged = options.privileged ?? false;
  const metadata = { name, uid: options.uid ?? fresh("uid"), namespace: "default", attempt: 0 };
  const config = {
    metadata,
    logDirectory: `/var/log/pods/${name}`,
    labels: { ...options.labels, ...podLabels(metadata) },
    annotations: options.annotations ?? {},
    linux: { cgroupParent: options.cgroupParent ?? "", securityContext: { namespaceOptions: namespaces, privileged } },
  };
  const { podSandboxId } = await cri.runtime.runPodSandbox({ config, runtimeHandler: options.handler ?? "" });
  const pods = living.get(cri);
  const made: Pod = {
    id: podSandboxId,
    cri,
    config,
    metadata,
    namespaces,
    privileged,
    async stop() {
      // Containers that share a process namespace end together, and containerd may ask a shim that is just going. A
      // kubelet asks again until it has an answer.
      for (const end = Date.now() + PATIENCE; ; await sleep(POLL)) {
        try {
          await cri.runtime.stopPodSandbox({ podSandboxId });
          return;
        } catch (error) {
          const gone = error instanceof CriError && error.details.endsWith("ttrpc: closed");
          if (!gone || Date.now() > end) throw error;
        }
      }
    },
    async remove() {
      if (pods?.has(made) !== true) return;
      await made.stop();
      await cri.runtime.removePodSandbox({ podSandboxId });
      pods.delete(made);
    },
  };
  pods?.add(made);
  owner.after(() => made.remove());
  return made;
}

export interface ContainerOptions {
  readonly image: string;
  readonly name?: string;
  /** How often a kubelet has made it before. */
  readonly attempt?: number;
  /** Replaces the image's entry point. */
  readonly command?: readonly string[];
  readonly env?: Record<string, string>;
  readonly labels?: Record<string, string>;
  readonly annotations?: Record<string, string>;
  /** `vendor/class=name`, for the field CDI_devices. */
  readonly cdiDevices?: readonly string[];
  readonly devices?: Fields<typeof ContainerConfigSchema>["devices"];
  readonly mounts?: Fields<typeof ContainerConfigSchema>["mounts"];
  /** Its pod must be privileged too. */
  readonly privileged?: boolean;
  readonly readonlyRootfs?: boolean;
  readonly capabilities?: { readonly add?: readonly string[]; readonly drop?: readonly string[] };
  /** The image's, where left out. */
  readonly user?: number;
  /** Its pod's, where left out. */
  readonly namespaces?: Fields<typeof NamespaceOptionSchema>;
  readonly resources?: Fields<typeof LinuxContainerResourcesSchema>;
  /** Whether to start it at once; the default. */
  readonly start?: boolean;
}

export interface ExecResult {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export interface LogLine {
  /** RFC 3339 with nanoseconds. */
  readonly time: string;
  readonly stream: "stdout" | "stderr";
  readonly text: string;
}

export interface Container {
  readonly id: string;
  readonly pod: Pod;
  start(): Promise<void>;
  /** @param timeout seconds until it is killed */
  stop(timeout?: number): Promise<void>;
  /** Stops it if need be. Once more does nothing. */
  remove(): Promise<void>;
  status(): Promise<ContainerStatus>;
  /** What the engine tells of it beside the interface. containerd: process id, OCI spec, snapshot, ... */
  info(): Promise<Record<string, unknown>>;
  /** Waits until it has ended. Its exit code. */
  wait(): Promise<number>;
  /** Runs a command in it to its end. */
  exec(...command: string[]): Promise<ExecResult>;
  update(resources: Fields<typeof LinuxContainerResourcesSchema>): Promise<void>;
  log(): Promise<LogLine[]>;
  /** What it wrote to stdout so far. */
  out(): Promise<string>;
}

/**
 * Creates a container in a pod and, unless told otherwise, starts it. It goes with its pod.
 *
 * @throws CriError with what the engine and, within that, the OCI runtime say
 */
export async function container(pod: Pod, options: ContainerOptions): Promise<Container> {
  const { runtime, root } = pod.cri;
  const name = options.name ?? fresh("container");
  const { containerId } = await runtime.createContainer({
    podSandboxId: pod.id,
    sandboxConfig: pod.config,
    config: {
      metadata: { name, attempt: options.attempt ?? 0 },
      image: { image: options.image, userSpecifiedImage: options.image },
      command: [...(options.command ?? [])],
      envs: Object.entries(options.env ?? {}).map(([key, value]) => ({ key, value })),
      mounts: options.mounts ?? [],
      devices: options.devices ?? [],
      labels: { ...options.labels, ...podLabels(pod.metadata), "io.kubernetes.container.name": name },
      annotations: options.annotations ?? {},
      logPath: `${name}.log`,
      linux: {
        resources: options.resources ?? {},
        securityContext: {
          namespaceOptions: options.namespaces ?? pod.namespaces,
          privileged: options.privileged ?? pod.privileged,
          readonlyRootfs: options.readonlyRootfs ?? false,
          capabilities: {
            addCapabilities: [...(options.capabilities?.add ?? [])],
            dropCapabilities: [...(options.capabilities?.drop ?? [])],
          },
          ...(options.user === undefined ? {} : { runAsUser: { value: BigInt(options.user) } }),
        },
      },
      CDIDevices: (options.cdiDevices ?? []).map((device) => ({ name: device })),
    },
  });

  const status = async (): Promise<ContainerStatus> => {
    const answer = await runtime.containerStatus({ containerId });
    if (answer.status === undefined) throw new CriError("ContainerStatus", "OK", "the answer has no status");
    return answer.status;
  };
  const made: Container = {
    id: containerId,
    pod,
    status,
    async start() {
      await runtime.startContainer({ containerId });
    },
    async stop(timeout = 0) {
      await runtime.stopContainer({ containerId, timeout: BigInt(timeout) });
    },
    async remove() {
      await runtime.removeContainer({ containerId });
    },
    async info() {
      const { info } = await runtime.containerStatus({ containerId, verbose: true });
      return JSON.parse(info["info"] ?? "{}");
    },
    async wait() {
      const end = Date.now() + PATIENCE;
      for (;;) {
        const { state, exitCode } = await status();
        if (state === ContainerState.CONTAINER_EXITED) return exitCode;
        if (Date.now() > end) throw new Error(`container ${containerId} has not ended after ${PATIENCE / 1000} s`);
        await sleep(POLL);
      }
    },
    async exec(...command) {
      const { exitCode, stdout, stderr } = await runtime.execSync({ containerId, cmd: command });
      return { code: exitCode, out: text(stdout), err: text(stderr) };
    },
    async update(resources) {
      await runtime.updateContainerResources({ containerId, linux: resources });
    },
    async log() {
      return parseLog(fs.readFileSync(path.join(root, (await status()).logPath), "utf8"));
    },
    async out() {
      const lines = (await made.log()).filter((line) => line.stream === "stdout");
      return lines.map((line) => line.text).join("");
    },
  };
  if (options.start ?? true) await made.start();
  return made;
}

function text(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("utf8");
}

/**
 * Reads a container's log: lines of `TIME STREAM TAGS TEXT`, where the tag `P` marks a part of a line that the next
 * line of the same stream goes on with, and `F` its end (Kubernetes, CRI logging design).
 *
 * @returns the lines as the container wrote them, each with its line feed
 */
export function parseLog(log: string): LogLine[] {
  const lines: LogLine[] = [];
  const parts = { stdout: "", stderr: "" };
  for (const line of log.split("\n")) {
    if (line === "") continue;
    const found = /^(\S+) (stdout|stderr) ([^ ]+) (.*)$/s.exec(line);
    if (found === null) throw new Error(`not a line of a CRI log: ${JSON.stringify(line)}`);
    const [time, stream, tags, part] = found.slice(1) as [string, LogLine["stream"], string, string];
    parts[stream] += part;
    if (tags.split(":").includes("P")) continue;
    lines.push({ time, stream, text: `${parts[stream]}\n` });
    parts[stream] = "";
  }
  return lines;
}
