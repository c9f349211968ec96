/**
 * The door of Kubernetes nodes: what a plugin of the engine's NRI answers. The same pipeline as in all doors, with the
 * kubelet's evidence at hand.
 */

import { create } from "@bufbuild/protobuf";
import type { ContainerEdits, DeviceNode } from "../cdi/spec.ts";
import { missingEdits } from "../oci/missing.part.ts";
import type { Config } from "../oci/spec.ts";
import { planByEngine, STAMP } from "../plan/inject.ts";
import type { Machine } from "../plan/machine.ts";
import type { Plan } from "../plan/plan.ts";
import {
  type Asker,
  conclude,
  type Decision,
  isLacking,
  judge,
  refusedBy,
  type Wanted,
  wantedBy,
} from "../plan/pod.ts";
import { type Receipt, Receipts } from "../plan/receipt.ts";
import type { Evidence, PodContainer } from "../policy/allocation.ts";
import { trustFor } from "../policy/grant.ts";
import { shownPod } from "../policy/pod.ts";
import { readNvidiaVariables } from "../request/nvidia.ts";
import { isAsk } from "../request/request.ts";
import { SluiceError } from "../sys/error.ts";
import { Adjustments, isEmpty, toConfig } from "./adjust.ts";
import {
  type Container,
  type ContainerAdjustment,
  ContainerSchema,
  type ValidateContainerAdjustmentRequest,
} from "./gen/nri_pb.js";
import type { Handlers, Runtime } from "./session.ts";
import type { ReadContainer, ReadPod } from "./subject.ts";
import { isAtLeast, type NriVersion } from "./version.ts";

export const DOOR = "nri";

/** What the kubelet allocated, remembered by pod sandbox (src/kubelet/evidence.ts). */
export interface EvidenceSource {
  begin(sandbox: string, pod: Omit<PodContainer, "container">): void;
  known(sandbox: string, container: PodContainer): Evidence | undefined;
  of(
    sandbox: string,
    container: PodContainer,
    timeout: number,
    options?: { readonly again?: boolean },
  ): Promise<Evidence>;
  forget(sandbox: string): void;
}

export interface DoorOptions {
  /** The machine with the settings that hold now. */
  readonly machine: () => Machine;
  readonly evidence: EvidenceSource;
  /** Told of each container that asks for or carries a GPU: what came of it. */
  readonly observe: (outcome: Outcome) => void;
}

export interface Outcome {
  readonly container: PodContainer;
  readonly id: string;
  readonly event: "create" | "start";
  /** CDI device names that it was given. */
  readonly given: readonly string[];
  /** Why it was refused. */
  readonly refusal?: SluiceError;
}

/** The handlers of the events that the door subscribes to. */
export function nriDoor(options: DoorOptions): Handlers {
  const door = new Door(options);
  return {
    synchronize: (_, containers, runtime) => door.synchronize(containers, runtime),
    runPodSandbox: (pod) => options.evidence.begin(pod.id, podOf(pod)),
    removePodSandbox: (pod) => door.removePod(pod),
    createContainer: (pod, container, runtime) => door.create(pod, container, runtime),
    validateContainerAdjustment: (request) => door.validate(request),
    startContainer: (pod, container) => door.start(pod, container),
    removeContainer: (pod, container) => door.remove(pod, container),
  };
}

/** Of the time that the runtime gives us, what the kubelet may take. */
const KUBELETS_SHARE = 0.6;

class Door {
  readonly #options: DoorOptions;
  #runtime: Pick<Runtime, "name" | "requestTimeout"> = { name: "", requestTimeout: Number.POSITIVE_INFINITY };
  /** Ids of containers with a receipt of ours, by sandbox: CRI-O tells nobody of a creation that fails after our answer. */
  readonly #given = new Map<string, Set<string>>();
  /** Ids of containers whose creation waits for the kubelet. */
  readonly #waiting = new Set<string>();
  #receipts: { readonly stateDir: string; readonly of: Receipts } | undefined;

  constructor(options: DoorOptions) {
    this.#options = options;
  }

  receipts({ sys, stateDir }: Machine = this.#options.machine()): Receipts {
    if (this.#receipts?.stateDir !== stateDir) this.#receipts = { stateDir, of: new Receipts(sys, stateDir) };
    return this.#receipts.of;
  }

  /** Receipts of containers that went while nobody told us go too: our own, and those of any door whose bundle is gone. */
  synchronize(containers: readonly Container[], runtime: Runtime): void {
    this.#runtime = runtime;
    const receipts = this.receipts();
    const living = new Set(containers.map(({ id }) => id));
    for (const id of receipts.ids()) if (!living.has(id)) receipts.sweep(id, DOOR);
  }

  /** @throws SluiceError: the container is not created */
  create(
    pod: ReadPod,
    container: ReadContainer,
    runtime: Runtime,
  ): ContainerAdjustment | undefined | Promise<ContainerAdjustment | undefined> {
    const machine = this.#options.machine();
    const asker = askerOf(pod, container);
    const config = configOf(pod, container);
    return this.#observed(asker, "create", () => {
      if (trustFor(machine.settings, asker.pod) === "engine") {
        const plan = planByEngine(machine, config, undefined, asker.pod);
        return plan && this.#give(machine, asker, pod, adjust(machine, container, runtime.nri, plan));
      }
      const wanted = wantedBy(machine, asker, config, { audited: true });
      if (wanted === undefined) return undefined;
      let made: Adjusted | undefined;
      const decide = (evidence: Evidence | undefined): Decision => {
        const decision = judge(machine, asker, wanted, evidence);
        if (decision.plan === undefined) return decision;
        try {
          made = adjust(machine, container, runtime.nri, decision.plan);
          return { ...decision, plan: made.plan };
        } catch (thrown) {
          if (!(thrown instanceof SluiceError)) throw thrown;
          return refusedBy(thrown);
        }
      };
      const finish = ({ evidence, decision: judged }: Judged, isWanted = true) => {
        const decision = isWanted ? judged : refusedBy(tooLate(asker));
        const plan = conclude(machine, asker, wanted, evidence, decision);
        if (plan !== undefined && made !== undefined) return this.#give(machine, asker, pod, made);
        this.#observe(asker, "create", []);
        return undefined;
      };
      const judged = this.#judge(machine, pod.id, asker, wanted, decide);
      if (!(judged instanceof Promise)) return finish(judged);
      this.#waiting.add(container.id);
      return judged.then((later) => finish(later, this.#waiting.delete(container.id)));
    });
  }

  /** Also of one that we still decide on: the runtime did not wait for us. */
  remove(pod: ReadPod, { id }: ReadContainer): void {
    this.#waiting.delete(id);
    this.#given.get(pod.id)?.delete(id);
    this.receipts().release(id, "");
  }

  removePod({ id }: ReadPod): void {
    this.#options.evidence.forget(id);
    for (const container of this.#given.get(id) ?? []) this.receipts().release(container, "");
    this.#given.delete(id);
  }

  /**
   * Looks at what all plugins together make of the container: nothing was added that nobody allocated. Runtimes ask this
   * from NRI 0.10 on.
   *
   * @throws SluiceError: the container is not created
   */
  validate({ pod, container, adjust }: ValidateContainerAdjustmentRequest): undefined | Promise<undefined> {
    if (pod === undefined || container === undefined) return undefined;
    const stamped = { ...container.annotations, ...adjust?.annotations };
    const receipt = this.#receiptOf(container.id, stamped);
    return this.#check(pod, container, adjusted(configOf(pod, container), adjust), receipt, "create");
  }

  /**
   * Looks at the container as it is about to start, when all plugins have had their say: nothing was added that nobody
   * allocated, and what was given is still there. One that was created while we were away is not started without its GPU.
   *
   * @throws SluiceError: the container is not started, and the kubelet makes another one. CRI-O starts it all the same.
   */
  start(pod: ReadPod, container: ReadContainer): undefined | Promise<undefined> {
    const receipt = this.#receiptOf(container.id, container.annotations);
    return this.#check(pod, container, configOf(pod, container), receipt, "start");
  }

  #check(
    pod: ReadPod,
    container: ReadContainer,
    config: Config,
    receipt: Receipt | undefined,
    event: Outcome["event"],
  ): undefined | Promise<undefined> {
    const machine = this.#options.machine();
    const asker = askerOf(pod, container);
    if (trustFor(machine.settings, asker.pod) === "engine") return undefined;
    return this.#observed(asker, event, () => {
      if (receipt !== undefined && event === "start") checkStillThere(asker, config, receipt);
      const given = receipt?.edits.map(({ edits }) => edits);
      const wanted = wantedBy(machine, asker, config, { audited: true, ...(given === undefined ? {} : { given }) });
      // A privileged container is told of when it is created.
      if (wanted === undefined || !wanted.needsEvidence) return undefined;
      const decide = (evidence: Evidence | undefined) => {
        const decision = judge(machine, asker, wanted, evidence);
        return decision.plan === undefined ? decision : refusedBy(passedBy(asker));
      };
      const finish = ({ evidence, decision }: Judged) => {
        const { refusal, ...rest } = decision;
        // What starts was decided on, and told of, when it was created.
        if (refusal === undefined) return undefined;
        const isInVain = event === "start" && this.#runtime.name === "cri-o";
        conclude(machine, asker, wanted, evidence, isInVain ? rest : decision);
        return undefined;
      };
      const judged = this.#judge(machine, pod.id, asker, wanted, decide);
      return judged instanceof Promise ? judged.then(finish) : finish(judged);
    });
  }

  /** The receipt that a container's stamp names. */
  #receiptOf(id: string, annotations: Readonly<Record<string, string>>): Receipt | undefined {
    if (!Object.hasOwn(annotations, STAMP)) return undefined;
    const receipt = this.receipts().read(id);
    return receipt?.digest === annotations[STAMP] ? receipt : undefined;
  }

  /**
   * Without waiting, where the kubelet's answer is there. What is remembered may lack something: before anybody is refused,
   * the kubelet is asked again.
   */
  #judge(
    machine: Machine,
    sandbox: string,
    { pod }: Asker,
    wanted: Wanted,
    decide: (evidence: Evidence | undefined) => Decision,
  ): Judged | Promise<Judged> {
    if (!wanted.needsEvidence) return { evidence: undefined, decision: decide(undefined) };
    const known = this.#options.evidence.known(sandbox, pod);
    if (known !== undefined) {
      const decision = decide(known);
      if (!isLacking(decision)) return { evidence: known, decision };
    }
    // An answer after the runtime's own deadline is none: it would go on without us.
    const deadline = Math.min(machine.settings.daemon.evidenceDeadline, KUBELETS_SHARE * this.#runtime.requestTimeout);
    return this.#options.evidence
      .of(sandbox, pod, deadline, { again: known !== undefined })
      .then((evidence) => ({ evidence, decision: decide(evidence) }));
  }

  /** The receipt first: a stamp that no receipt vouches for must not be. */
  #give(machine: Machine, asker: Asker, pod: ReadPod, { plan, adjustment }: Adjusted): ContainerAdjustment | undefined {
    const given = this.#given.get(pod.id) ?? new Set();
    this.#given.set(pod.id, given.add(asker.id));
    this.receipts(machine).write(asker.id, DOOR, "", "", plan);
    this.#observe(
      asker,
      "create",
      plan.devices.map(({ name }) => name),
    );
    return isEmpty(adjustment) ? undefined : adjustment;
  }

  #observe({ pod, id }: Asker, event: Outcome["event"], given: Outcome["given"], refusal?: SluiceError): void {
    this.#options.observe({ container: pod, id, event, given, ...(refusal === undefined ? {} : { refusal }) });
  }

  /** Tells of what is thrown, now or later. */
  #observed<T>(asker: Asker, event: Outcome["event"], run: () => T | Promise<T>): T | Promise<T> {
    const failed = (thrown: unknown): never => {
      if (thrown instanceof SluiceError) this.#observe(asker, event, [], thrown);
      throw thrown;
    };
    try {
      const result = run();
      return result instanceof Promise ? result.catch(failed) : result;
    } catch (thrown) {
      return failed(thrown);
    }
  }
}

interface Judged {
  readonly evidence: Evidence | undefined;
  readonly decision: Decision;
}

interface Adjusted {
  /** What is really given: the plan as far as this runtime can be told of it. */
  readonly plan: Plan;
  readonly adjustment: ContainerAdjustment;
}

function podOf({ namespace, name, uid }: ReadPod): Omit<PodContainer, "container"> {
  return { namespace, pod: name, uid };
}

function askerOf({ namespace, name, uid }: ReadPod, container: ReadContainer): Asker {
  return { door: DOOR, id: container.id, pod: { namespace, pod: name, container: container.name, uid } };
}

/** What a container is given besides its config.json: the annotations of its pod by which it may ask. */
function configOf(pod: ReadPod, container: ReadContainer): Config {
  const annotations = { ...container.annotations };
  for (const key of Object.keys(pod.annotations)) {
    if (isAsk(key)) annotations[key] = pod.annotations[key] as string;
  }
  // Names the container for readRequest, also where the engine writes it down only later.
  annotations["io.kubernetes.cri.container-name"] = container.name;
  annotations["io.kubernetes.cri.container-type"] = "container";
  return toConfig(container, annotations);
}

/** The container with what plugins want of it, as far as that can be a GPU. */
function adjusted(config: Config, adjust: ContainerAdjustment | undefined): Config {
  if (adjust === undefined) return config;
  const { linux, mounts } = toConfig(create(ContainerSchema, { mounts: adjust.mounts, linux: linuxOf(adjust) }));
  const rules = [...(config.linux?.resources?.devices ?? []), ...(linux?.resources?.devices ?? [])];
  return {
    ...config,
    mounts: [...(config.mounts ?? []), ...(mounts ?? [])],
    linux: {
      ...config.linux,
      devices: [...(config.linux?.devices ?? []), ...(linux?.devices ?? [])],
      resources: { ...config.linux?.resources, devices: rules },
    },
  };
}

function linuxOf({ linux }: ContainerAdjustment) {
  return { devices: linux?.devices ?? [], ...(linux?.resources === undefined ? {} : { resources: linux.resources }) };
}

/** @throws SluiceError E_NRI_*, E_EDIT_* */
function adjust(machine: Machine, container: ReadContainer, nri: NriVersion, plan: Plan): Adjusted {
  const { plan: final, adjustments } = sayable(machine, plan, limitsOf(container, nri));
  return { plan: final, adjustment: adjustments.of(container, nri) };
}

/** Since when a plugin can say more of a device's access than that there is a device. */
const DEVICE_RULES = 10;
const VISIBLE = "NVIDIA_VISIBLE_DEVICES";
const NOTHING_VISIBLE = `${VISIBLE}=void`;

/** What the runtime cannot be told, and need not be. */
interface Limits {
  /**
   * That a container may make a device's node anew, as most specs say, NRI before 0.10 cannot be told. It matters little,
   * and must not keep the container from its GPU.
   */
  readonly noMake: boolean;
  /**
   * That NVIDIA's own runtime shall add nothing cannot be set where image and pod set the variable both (adjust.ts). Where
   * what stands names devices one by one, those were granted, and nothing more could be added; where it is `all`, the
   * container is refused.
   */
  readonly noVisible: boolean;
}

function limitsOf({ env }: ReadContainer, nri: NriVersion): Limits {
  const isTwice = env.filter((entry) => entry.startsWith(`${VISIBLE}=`)).length > 1;
  const stands = isTwice ? readNvidiaVariables(env).get(VISIBLE) : undefined;
  return {
    noMake: !isAtLeast(nri, DEVICE_RULES),
    noVisible: stands !== undefined && !/(?:^|,)\s*all\s*(?:,|$)/.test(stands),
  };
}

interface Sayable {
  /** A plan of its own where that is less. */
  readonly plan: Plan;
  readonly adjustments: Adjustments;
}

/** Plans as they were last said, by the plan that they were made of: a process that lives makes the same ones again. */
const said = new WeakMap<Plan, { readonly limits: Limits; readonly sayable: Sayable }>();

/** The plan as far as the runtime can be told of it. */
function sayable({ sys }: Machine, plan: Plan, limits: Limits): Sayable {
  const before = said.get(plan);
  if (before?.limits.noMake === limits.noMake && before.limits.noVisible === limits.noVisible) return before.sayable;
  const planned = plan.edits.map((one) => ({ ...one, edits: within(one.edits, limits) }));
  let final = plan;
  if (planned.some(({ edits }, i) => edits !== plan.edits[i]?.edits)) {
    const text = JSON.stringify({ devices: plan.devices, edits: planned });
    final = { digest: sys.sha256(text), devices: plan.devices, edits: planned, text, specs: plan.specs };
  }
  const edits = planned.map((one) => one.edits);
  const made = { plan: final, adjustments: new Adjustments(edits, { [STAMP]: final.digest }) };
  said.set(plan, { limits, sayable: made });
  return made;
}

function within(edits: ContainerEdits, { noMake, noVisible }: Limits): ContainerEdits {
  let next = edits;
  const makes = ({ type, permissions }: DeviceNode) => type === "c" && canMake(permissions);
  if (noMake && edits.deviceNodes?.some(makes)) {
    const deviceNodes = edits.deviceNodes.map((node) =>
      makes(node) ? { ...node, permissions: withoutMake(node.permissions) } : node,
    );
    next = { ...next, deviceNodes };
  }
  if (noVisible && edits.env?.includes(NOTHING_VISIBLE)) {
    next = { ...next, env: edits.env.filter((entry) => entry !== NOTHING_VISIBLE) };
  }
  return next;
}

/** No permissions mean all of them. */
function canMake(permissions: string | undefined): boolean {
  return permissions === undefined || permissions === "" || permissions.includes("m");
}

function withoutMake(permissions: string | undefined): string {
  return permissions ? permissions.replaceAll("m", "") : "rw";
}

/** @throws SluiceError E_STAMP */
function checkStillThere({ pod }: Asker, config: Config, receipt: Receipt): void {
  const missing = missingEdits(
    config,
    receipt.edits.map(({ edits }) => edits),
  );
  if (missing.length === 0) return;
  throw new SluiceError(
    "E_STAMP",
    `container ${shownPod(pod)} was given plan ${receipt.digest}, but ${missing.length} of its edits are gone, the first: ${missing[0]?.what}`,
    "find which other NRI plugin takes them away, or give sluiced the higher index (daemon.nri_index)",
  );
}

function tooLate({ pod }: Asker): SluiceError {
  return new SluiceError(
    "E_NRI_LATE",
    `container ${shownPod(pod)} was given up before it was decided on`,
    "look why the kubelet answers late; the container is made anew",
  );
}

function passedBy({ pod }: Asker): SluiceError {
  return new SluiceError(
    "E_STAMP",
    `container ${shownPod(pod)} was created without the GPU that it asks for, while sluiced was away or did not answer in time`,
    "nothing: the kubelet makes the container anew; if this comes again, look at the log of sluiced",
  );
}
