/**
 * A kubelet as far as it tells of devices, for tests: PodResources v1 over gRPC on a unix socket, and the records that it
 * keeps beside it. It does what Kubernetes' own does with what it has admitted, its limit of questions included; what a
 * test wants it to do wrong is set on the object.
 */

import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { create, type DescMessage, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { ContainerAllocateResponseSchema } from "../../src/kubelet/gen/deviceplugin_pb.js";
import {
  type ContainerResourcesSchema,
  GetPodResourcesRequestSchema,
  GetPodResourcesResponseSchema,
  ListPodResourcesResponseSchema,
  type PodResourcesSchema,
} from "../../src/kubelet/gen/podresources_pb.js";
import type { Owner } from "./machine.ts";

/** What a device plugin answers for a container. */
export type Answer = MessageInitShape<typeof ContainerAllocateResponseSchema>;

export interface FakeContainer {
  /** Ids by resource. */
  readonly devices?: Readonly<Record<string, readonly string[]>>;
  /** The plugins' answers, by resource; an empty one where there is none. */
  readonly answers?: Readonly<Record<string, Answer>>;
  /** Names of the pod's claims that the container uses. */
  readonly claims?: readonly string[];
  /** An init container that ends before the others start, or one that is restarted. Absent of the others. */
  readonly init?: "ends" | "sidecar";
}

export interface FakeClaim {
  readonly driver: string;
  readonly pool: string;
  readonly device: string;
  readonly cdiDevices: readonly string[];
}

export interface FakePod {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly containers: Readonly<Record<string, FakeContainer>>;
  /** Prepared for the pod, by name, in its namespace. */
  readonly claims?: Readonly<Record<string, FakeClaim>>;
}

export interface FakeKubelet {
  /** The folder that a kubelet's `--root-dir` names. */
  readonly dir: string;
  /** `DIR/pod-resources/kubelet.sock` */
  readonly socket: string;
  /** How often it was asked, what it refused included. */
  readonly calls: { get: number; list: number };
  /** Whether it has `Get`: `disabled` is behind its feature gate, `absent` is an older kubelet. */
  get: "served" | "disabled" | "absent";
  /** Whether it writes its records when it admits a pod. */
  records: boolean;
  /** In place of an answer. Bytes are sent as they are. */
  instead: "hang" | grpc.StatusObject["code"] | Uint8Array | undefined;
  /** Milliseconds before each answer. */
  delay: number;
  /** Questions at once, and in a second after that. */
  limit: { burst: number; rate: number };
  /** Allocates for all containers of a pod, as before its sandbox is created. */
  admit(...pods: FakePod[]): void;
  /** The pod has ended. The records keep it until the next is admitted. */
  remove(uid: string): void;
  /** Ends the process: calls that run break, and the socket goes. */
  kill(): void;
  /** Starts it, with a new socket. */
  start(): Promise<void>;
}

/** Starts a kubelet in a folder, until its owner is done. */
export async function startKubelet(owner: Owner, dir: string): Promise<FakeKubelet> {
  const kubelet = new Kubelet(dir);
  owner.after(() => kubelet.kill());
  await kubelet.start();
  return kubelet;
}

class Kubelet implements FakeKubelet {
  readonly dir: string;
  readonly socket: string;
  readonly calls = { get: 0, list: 0 };
  get: FakeKubelet["get"] = "served";
  records = true;
  instead: FakeKubelet["instead"];
  delay = 0;
  limit = { burst: 10, rate: 100 };
  #server: grpc.Server | undefined;
  /** By UID. */
  readonly #pods = new Map<string, FakePod>();
  #tokens = { left: 10, at: 0 };

  constructor(dir: string) {
    this.dir = dir;
    this.socket = path.join(dir, "pod-resources/kubelet.sock");
    this.#tokens.left = this.limit.burst;
  }

  admit(...pods: FakePod[]): void {
    for (const pod of pods) this.#pods.set(pod.uid, pod);
    if (this.records) this.#record();
  }

  remove(uid: string): void {
    this.#pods.delete(uid);
  }

  kill(): void {
    this.#server?.forceShutdown();
    this.#server = undefined;
  }

  async start(): Promise<void> {
    const dir = path.dirname(this.socket);
    fs.mkdirSync(dir, { recursive: true });
    fs.rmSync(this.socket, { force: true });
    const server = new grpc.Server();
    server.addService(
      { get: method("Get"), list: method("List") },
      {
        get: this.#handler(() => this.calls.get++, this.#get.bind(this)),
        list: this.#handler(() => this.calls.list++, this.#list.bind(this)),
      },
    );
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${this.socket}`, grpc.ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      );
    });
    this.#server = server;
  }

  #handler(count: () => void, answer: (request: Uint8Array) => Uint8Array): grpc.handleUnaryCall<Buffer, Buffer> {
    return (call, done) => {
      count();
      this.#answer(() => answer(call.request)).then(
        (bytes) => bytes !== undefined && done(null, Buffer.from(bytes)),
        (error: grpc.ServiceError) => done(error),
      );
    };
  }

  async #answer(answer: () => Uint8Array): Promise<Uint8Array | undefined> {
    if (!this.#allowed()) throw status(grpc.status.RESOURCE_EXHAUSTED, "rejected by rate limit");
    const { instead } = this;
    if (instead === "hang") return undefined;
    // What it says is what held when it was asked.
    const bytes = instead === undefined ? answer() : instead;
    if (this.delay > 0) await sleep(this.delay);
    if (typeof bytes === "number") throw status(bytes, "as the test wants it");
    return bytes;
  }

  /** The token bucket of k8s.io/kubernetes/pkg/kubelet/apis/grpc. */
  #allowed(): boolean {
    const now = Date.now();
    const { burst, rate } = this.limit;
    const gained = ((now - this.#tokens.at) * rate) / 1000;
    this.#tokens = { left: Math.min(burst, this.#tokens.left + gained), at: now };
    if (this.#tokens.left < 1) return false;
    this.#tokens.left--;
    return true;
  }

  #get(request: Uint8Array): Uint8Array {
    if (this.get === "absent") throw status(grpc.status.UNIMPLEMENTED, "unknown method Get for service");
    if (this.get === "disabled") throw status(grpc.status.UNKNOWN, "PodResources API Get method disabled");
    const { podNamespace, podName } = fromBinary(GetPodResourcesRequestSchema, request);
    // By name there is one: the last that came.
    const pods = [...this.#pods.values()].filter(
      ({ namespace, name }) => namespace === podNamespace && name === podName,
    );
    const pod = pods.at(-1);
    if (pod === undefined) {
      throw status(grpc.status.UNKNOWN, `pod ${podName} in namespace ${podNamespace} not found`);
    }
    return encode(GetPodResourcesResponseSchema, { podResources: resources(pod) });
  }

  #list(): Uint8Array {
    return encode(ListPodResourcesResponseSchema, { podResources: [...this.#pods.values()].map(resources) });
  }

  #record(): void {
    const pods = [...this.#pods.values()];
    const entries = pods.flatMap((pod) =>
      Object.entries(pod.containers).flatMap(([container, { devices, answers }]) =>
        Object.entries(devices ?? {}).map(([resource, ids]) => ({
          PodUID: pod.uid,
          ContainerName: container,
          ResourceName: resource,
          // All of no NUMA node.
          DeviceIDs: { "-1": ids },
          AllocResp: Buffer.from(encode(ContainerAllocateResponseSchema, answers?.[resource] ?? {})).toString("base64"),
        })),
      ),
    );
    write(
      path.join(this.dir, "device-plugins/kubelet_internal_checkpoint"),
      JSON.stringify({
        Data: { PodDeviceEntries: entries.length === 0 ? null : entries, RegisteredDevices: {} },
        Checksum: 1234567890,
      }),
    );
    const claims = pods.flatMap((pod) =>
      Object.entries(pod.claims ?? {}).map(([name, { driver, pool, device, cdiDevices }]) => ({
        ClaimUID: `${pod.uid}-${name}`,
        ClaimName: name,
        Namespace: pod.namespace,
        PodUIDs: { [pod.uid]: {} },
        DriverState: {
          [driver]: {
            Devices: [{ PoolName: pool, DeviceName: device, RequestNames: ["gpu"], CDIDeviceIDs: cdiDevices }],
          },
        },
      })),
    );
    if (claims.length === 0) return; // as of a kubelet that has no DRA drivers
    const data = { kind: "DRACheckpoint", apiVersion: "checkpoint.dra.kubelet.k8s.io/v1", ClaimInfoStateList: claims };
    write(
      path.join(this.dir, "dra_manager_state"),
      JSON.stringify({ Data: JSON.stringify(data), Checksum: 1234567890 }),
    );
  }
}

/** What PodResources tells of a pod: its containers, and init containers that are sidecars. */
function resources(pod: FakePod): MessageInitShape<typeof PodResourcesSchema> {
  return {
    name: pod.name,
    namespace: pod.namespace,
    containers: Object.entries(pod.containers)
      .filter(([, { init }]) => init !== "ends")
      .map(
        ([name, { devices, claims }]): MessageInitShape<typeof ContainerResourcesSchema> => ({
          name,
          devices: Object.entries(devices ?? {}).flatMap(([resourceName, ids]) =>
            ids.map((id) => ({ resourceName, deviceIds: [id] })),
          ),
          dynamicResources: (claims ?? []).map((claimName) => {
            const claim = pod.claims?.[claimName];
            if (claim === undefined) throw new Error(`the pod has no claim ${claimName}`);
            return {
              claimName,
              claimNamespace: pod.namespace,
              claimResources: [
                {
                  driverName: claim.driver,
                  poolName: claim.pool,
                  deviceName: claim.device,
                  cdiDevices: claim.cdiDevices.map((device) => ({ name: device })),
                },
              ],
            };
          }),
        }),
      ),
  };
}

function method(name: string): grpc.MethodDefinition<Buffer, Buffer> {
  const asIs = (bytes: Buffer) => bytes;
  return {
    path: `/v1.PodResourcesLister/${name}`,
    requestStream: false,
    responseStream: false,
    requestSerialize: asIs,
    requestDeserialize: asIs,
    responseSerialize: asIs,
    responseDeserialize: asIs,
  };
}

function status(code: grpc.status, details: string): Partial<grpc.StatusObject> {
  return { code, details };
}

function encode<S extends DescMessage>(schema: S, message: MessageInitShape<S>): Uint8Array {
  return toBinary(schema, create(schema, message));
}

/** In one step, as a kubelet does it. */
function write(file: string, text: string): void {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(`${file}.new`, text, { mode: 0o600 });
  fs.renameSync(`${file}.new`, file);
}
