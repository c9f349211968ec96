/**
 * The pipeline for a pod's container, whose word counts for nothing: what it asks for, and what others have put into its
 * config.json, is held against what the kubelet allocated to it. Every decision leaves a line in the audit log.
 */

import { collectEdits, resolveDeviceNodes } from "../cdi/edits.ts";
import type { Registry } from "../cdi/registry.ts";
import type { ContainerEdits } from "../cdi/spec.ts";
import { Look } from "../host/look.ts";
import type { Config } from "../oci/spec.ts";
import type { Allocation, Evidence, PodContainer } from "../policy/allocation.ts";
import type { Denied, Entitled } from "../policy/grant-allocated.ts";
import { sandboxOf, shownPod } from "../policy/pod.ts";
import { checkRules } from "../policy/rules.ts";
import { isEmpty, type Request, readRequest } from "../request/request.ts";
import { OsError, printable, SluiceError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";
import { allocatedHere } from "./allocated-here.ts";
import { askDaemon } from "./ask-daemon.ts";
import { type Told, writeAudit } from "./audit.ts";
import { type Carried, type CarriedNode, findCarried } from "./carried.ts";
import { namesOf } from "./device-names.ts";
import { mayHaveMore } from "./entitled.ts";
import { planGranted } from "./granted.ts";
import type { Machine } from "./machine.ts";
import type { Memory } from "./memory.ts";
import type { Plan } from "./plan.ts";
import { openMachineRegistry } from "./registry.ts";

/** A container that a door decides on. */
export interface Asker {
  readonly door: string;
  readonly id: string;
  readonly pod: PodContainer;
}

export interface PodOptions {
  /** Whether the decision is written to the audit log. */
  readonly audited: boolean;
  /** Edits that a door before us has made, and answers for. */
  readonly given?: readonly ContainerEdits[];
}

/**
 * For doors that cannot talk to the kubelet: what a pod's container is given, by the evidence that sluiced has;
 * `undefined` where there is nothing to give.
 *
 * @throws SluiceError E_REQUEST_*, E_CDI_*, E_NO_EVIDENCE, E_NOT_ALLOCATED, E_NOT_ALLOWED, E_AUDIT
 */
export function planForPod(machine: Machine, asker: Asker, config: Config, options: PodOptions): Plan | undefined {
  const wanted = wantedBy(machine, asker, config, options);
  if (wanted === undefined) return undefined;
  const ask = (again: boolean) => askDaemon(machine, asker.pod, sandboxOf(config), again);
  let evidence = wanted.needsEvidence ? ask(false) : undefined;
  let decision = judge(machine, asker, wanted, evidence);
  if (evidence !== undefined && isLacking(decision)) {
    evidence = ask(true); // what sluiced remembers may lack something
    decision = judge(machine, asker, wanted, evidence);
  }
  if (options.audited) return conclude(machine, asker, wanted, evidence, decision);
  if (decision.refusal !== undefined) throw decision.refusal;
  return decision.plan;
}

/** What a container has to do with GPUs. */
export interface Wanted {
  readonly request: Request;
  readonly carried: Carried;
  /** Whether the kubelet has to be asked. */
  readonly needsEvidence: boolean;
}

/**
 * What a pod's container asks for and carries; `undefined` where that is nothing, and nobody shall be kept waiting.
 *
 * @throws SluiceError E_REQUEST_*, E_CDI_*: what it asks for is not understood
 */
export function wantedBy(
  machine: Machine,
  asker: Asker,
  config: Config,
  { audited, given }: PodOptions,
): Wanted | undefined {
  const found = findCarried(config, machine.host);
  const carried = given === undefined ? found : { ...found, nodes: without(found.nodes, given) };
  let request = NOTHING.request;
  try {
    // What was asked for has been given.
    if (given === undefined) request = requestOf(machine, config);
  } catch (thrown) {
    if (thrown instanceof SluiceError && audited) {
      audit(machine, asker, { ...NOTHING, carried }, undefined, refusedBy(thrown));
    }
    throw thrown;
  }
  const asks = !isEmpty(request);
  const carries = !carried.isPrivileged && carried.nodes.length > 0;
  const sees =
    given === undefined &&
    carried.isPrivileged &&
    machine.settings.policy.privileged !== "allow" &&
    hasGpus(machine.host);
  return asks || carries || sees ? { request, carried, needsEvidence: asks || carries } : undefined;
}

/** Whether a container asks for a GPU, or could use one, as far as the settings do not let that be. */
export function concernsGpus({ host, settings }: Machine, config: Config): boolean {
  const { nodes, isPrivileged } = findCarried(config, host);
  if (isPrivileged ? settings.policy.privileged === "refuse" && hasGpus(host) : nodes.length > 0) return true;
  return !isEmpty(readRequest(config, settings.cdi.defaultKind));
}

function requestOf({ settings: { cdi }, memory }: Machine, config: Config): Request {
  return memory === undefined ? readRequest(config, cdi.defaultKind) : memory.request(config, cdi.defaultKind);
}

function without(nodes: readonly CarriedNode[], given: readonly ContainerEdits[]): CarriedNode[] {
  const own = new Set(given.flatMap((edits) => (edits.deviceNodes ?? []).map((n) => `${n.major}:${n.minor ?? 0}`)));
  return nodes.filter(({ major, minor }) => minor === undefined || !own.has(`${major}:${minor}`));
}

const NOTHING: Omit<Wanted, "carried"> = { request: { devices: [], driver: [] }, needsEvidence: false };

/** What a door has to do; not carried out yet, and not told anybody. */
export interface Decision {
  /** What it is given; absent where there is nothing to give. */
  readonly plan?: Plan;
  readonly denied: readonly Denied[];
  /** What the kubelet allocated, and means no device here; in words. */
  readonly notUnderstood?: readonly string[];
  /** Why it does not start. */
  readonly refusal?: SluiceError;
}

/** Whether more than the kubelet is known to have allocated was asked for, or carried. */
export function isLacking({ denied }: Decision): boolean {
  return denied.some((one) => one.code === "E_NOT_ALLOCATED" && one !== PRIVILEGED);
}

/**
 * Decides, and makes the plan of what the container is given.
 *
 * @param evidence where `wanted.needsEvidence`
 */
export function judge(machine: Machine, asker: Asker, wanted: Wanted, evidence: Evidence | undefined): Decision {
  try {
    return decide(machine, asker, wanted, evidence);
  } catch (thrown) {
    if (thrown instanceof SluiceError) return refusedBy(thrown);
    throw thrown;
  }
}

/**
 * Writes the decision to the audit log.
 *
 * @returns the plan, which is now to be carried out
 * @throws SluiceError the decision's refusal, or E_AUDIT: what leaves no line is not given
 */
export function conclude(
  machine: Machine,
  asker: Asker,
  wanted: Wanted,
  evidence: Evidence | undefined,
  decision: Decision,
): Plan | undefined {
  audit(machine, asker, wanted, evidence, decision);
  if (decision.refusal !== undefined) throw decision.refusal;
  return decision.plan;
}

function decide(machine: Machine, asker: Asker, wanted: Wanted, evidence: Evidence | undefined): Decision {
  const { settings, host } = machine;
  const { policy } = settings;
  const { request, carried } = wanted;
  const denied: Denied[] = [];
  if (carried.isPrivileged && policy.privileged !== "allow" && hasGpus(host)) denied.push(PRIVILEGED);
  if (denied.length > 0 && policy.privileged === "refuse") return { denied, refusal: refused(asker, denied) };
  if (!wanted.needsEvidence) return { denied };

  if (evidence === undefined || "unavailable" in evidence) {
    const first = request.devices[0] ?? request.driver[0];
    const what = first === undefined ? `it carries ${carried.nodes[0]?.what}` : `${first.from} asks for a GPU`;
    throw new SluiceError(
      "E_NO_EVIDENCE",
      `container ${shownPod(asker.pod)}: ${what}, and it is not known what the kubelet allocated to it: ` +
        `${evidence?.unavailable ?? "nobody was asked"}`,
      'run "systemctl status sluiced kubelet"; the container starts once both answer',
    );
  }
  const registry = openMachineRegistry(machine);
  const allocated = allocatedHere(machine, registry, asker.pod.namespace, request, evidence.allocation);
  const { entitled, notUnderstood, grant, denied: unfulfilled } = allocated;
  const nodes = carried.isPrivileged ? [] : carried.nodes;
  const toRefuse = [...unfulfilled, ...forbidden(machine, asker, registry, nodes, entitled)];
  const strange = strangers(host, registry, nodes, entitled).map(({ what }) => carrying(what));
  // What a device plugin gave, and nobody tells of, may be what is strange: that is told, and is no reason to refuse.
  const isUnsure = strange.length > 0 && mayHaveMore(evidence.allocation, registry, host);
  denied.push(...toRefuse, ...strange);
  if (!isUnsure) toRefuse.push(...strange);
  if (toRefuse.length > 0 && policy.unallocated === "refuse") {
    return { denied, notUnderstood, refusal: refused(asker, toRefuse, evidence) };
  }
  if (grant.devices.length === 0 && grant.driver.length === 0) return { denied, notUnderstood };
  return { plan: planGranted(machine, request, grant, registry), denied, notUnderstood };
}

const PRIVILEGED: Denied = {
  what: "it is privileged",
  code: "E_NOT_ALLOCATED",
  message: "it is privileged: it can open every GPU of the machine",
  remedy: 'take "privileged" away, or set policy.privileged = "report"',
};

const CARRIES = "it carries ";

function carrying(what: string): Denied {
  return {
    what: `${CARRIES}${what}`,
    code: "E_NOT_ALLOCATED",
    message: `${CARRIES}${what}, which the kubelet did not allocate to it`,
    remedy: "remove the hostPath, annotation or plugin that puts it there, or request the GPU under resources.limits",
  };
}

/** The allocated devices that are carried, and that a rule forbids. */
function forbidden(
  { settings: { policy, share }, host }: Machine,
  { pod }: Asker,
  registry: Registry,
  nodes: readonly CarriedNode[],
  entitled: readonly Entitled[],
): Denied[] {
  if (nodes.length === 0 || (policy.allow.length === 0 && policy.deny.length === 0)) return [];
  return entitled.flatMap(({ names: [name] }): Denied[] => {
    if (name === undefined) return [];
    const own = numbersOf(host, () => [registry.find(name).device.containerEdits]);
    if (!nodes.some(({ major, minor }) => own.has(`${major}:${minor}`))) return [];
    const what = `${CARRIES}${name}`;
    try {
      checkRules(policy, pod.namespace, [{ what, ...namesOf(registry, name) }], share.defaultMode);
      return [];
    } catch (thrown) {
      if (!(thrown instanceof SluiceError)) throw thrown;
      return [{ what, code: thrown.code, message: thrown.what, remedy: thrown.remedy }];
    }
  });
}

/** A refusal for a reason of any kind. */
export function refusedBy(refusal: SluiceError): Decision {
  return { denied: [failure(refusal)], refusal };
}

function failure({ code, what, remedy }: SluiceError): Denied {
  return { what, code, message: what, remedy };
}

function refused(
  asker: Asker,
  denied: readonly Denied[],
  evidence?: { from: string; allocation: Allocation },
): SluiceError {
  const first = denied[0] as Denied;
  const more = denied.length === 1 ? "" : ` (and ${denied.length - 1} more)`;
  const has = evidence === undefined ? "" : `; ${evidence.from}: ${shownAllocation(evidence.allocation)}`;
  return new SluiceError(first.code, `container ${shownPod(asker.pod)}: ${first.message}${more}${has}`, first.remedy);
}

/** Characters of what the kubelet said, in a message. */
const MOST = 300;

function shownAllocation({ devices, claims }: Allocation): string {
  const parts = [
    ...devices.map(({ resource, ids }) => `${resource} ${ids.join(" ")}`),
    ...claims.map(({ name, driver, device }) => `claim ${name}, ${device} of ${driver}`),
  ];
  const text = printable(parts.join(", "));
  if (text === "") return "nothing was allocated";
  return text.length > MOST ? `${text.slice(0, MOST)}...` : text;
}

/** The nodes that are none of an allocated device's. */
function strangers(
  host: Files,
  registry: Registry,
  nodes: readonly CarriedNode[],
  entitled: readonly Entitled[],
): CarriedNode[] {
  if (nodes.length === 0) return [];
  const own = new Set<string>();
  for (const { names, nodes: paths } of entitled) {
    for (const name of names) {
      const edits = () => collectEdits([registry.find(name)]).map((sourced) => sourced.edits);
      for (const numbers of numbersOf(host, edits)) own.add(numbers);
    }
    for (const path of paths)
      for (const numbers of numbersOf(host, () => [{ deviceNodes: [{ path }] }])) own.add(numbers);
  }
  return nodes.filter(({ major, minor }) => minor === undefined || !own.has(`${major}:${minor}`));
}

/** `major:minor` of the nodes that edits give. What no spec has, and a node that is gone, has none. */
function numbersOf(host: Files, editsOf: () => readonly ContainerEdits[]): ReadonlySet<string> {
  const numbers = new Set<string>();
  const attempt = <T>(read: () => readonly T[]): readonly T[] => {
    try {
      return read();
    } catch (thrown) {
      if (thrown instanceof SluiceError) return [];
      throw thrown;
    }
  };
  for (const { deviceNodes = [] } of attempt(editsOf)) {
    for (const node of deviceNodes) {
      for (const { major, minor } of attempt(() => resolveDeviceNodes([node], host)))
        numbers.add(`${major}:${minor ?? 0}`);
    }
  }
  return numbers;
}

/** A card without a renderer, as of a machine's management processor, is none. */
function hasGpus(host: Files): boolean {
  const look = new Look(host);
  return (
    ["/proc/driver/nvidia/gpus", "/dev/accel"].some((folder) => look.names(folder).length > 0) ||
    look.names("/dev/dri").some((name) => name.startsWith("renderD")) ||
    look.stat("/dev/kfd") !== undefined
  );
}

/** Entries of each list in a line of the audit log: what a pod can ask for is without bounds. */
const MOST_TOLD = 100;

/** @throws SluiceError E_AUDIT: what leaves no line is not given */
function audit(
  { sys, logDir, memory }: Machine,
  asker: Asker,
  wanted: Wanted,
  evidence: Evidence | undefined,
  decision: Decision,
): void {
  const { door, id, pod } = asker;
  const { denied, refusal } = decision;
  const word = refusal !== undefined ? "refused" : denied.length === 0 ? "granted" : "reported";
  const said = evidence && (memory?.textOf(evidence) ?? JSON.stringify(evidence));
  try {
    writeAudit(sys, logDir, { decision: word, door, id, pod }, toldOf(memory, wanted, decision), said);
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    if (refusal !== undefined) return; // the refusal itself is what must be told
    throw new SluiceError(
      "E_AUDIT",
      `the decision on container ${shownPod(pod)} cannot be written to ${logDir}/audit.jsonl: ${thrown.message}`,
      "make room there, and let root write to it",
      thrown,
    );
  }
}

/** A `Told` as JSON. */
function toldOf(memory: Memory | undefined, { request, carried }: Wanted, decision: Decision): string {
  const { plan, denied, notUnderstood = [] } = decision;
  const isPlain = denied.length + notUnderstood.length + carried.nodes.length === 0 && !carried.isPrivileged;
  const plain = isPlain ? plan : undefined;
  const known = plain && memory?.told.get(plain);
  if (known?.request === request) return known.told;

  let omitted = 0;
  const cut = <T>(list: readonly T[]): readonly T[] => {
    omitted += Math.max(0, list.length - MOST_TOLD);
    return list.slice(0, MOST_TOLD);
  };
  const all: Told = {
    asked: cut([...request.devices, ...request.driver.map(({ kind, from }) => ({ name: kind, from }))]),
    carried: cut(carried.isPrivileged ? [] : carried.nodes.map(({ what }) => what)),
    privileged: carried.isPrivileged,
    given: plan?.devices.map(({ name }) => name) ?? [],
    ...(plan === undefined ? {} : { digest: plan.digest }),
    denied: cut(denied.map(({ remedy: _, ...rest }) => rest)),
    notUnderstood: cut(notUnderstood),
  };
  const told = JSON.stringify(omitted === 0 ? all : { ...all, omitted });
  if (plain !== undefined) memory?.told.set(plain, { request, told });
  return told;
}
