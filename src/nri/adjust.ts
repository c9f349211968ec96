/**
 * CDI edits as an adjustment of a container, which is how a plugin of NRI says what it wants. Never as CDI device names
 * (`CDI_devices`): several releases pass over those in silence.
 *
 * The runtime applies adjustments to the OCI spec (NRI, pkg/runtime-tools/generate). What an older version does not know
 * it skips without a word, so that is refused here.
 */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { IntelRdt as CdiIntelRdt, ContainerEdits, DeviceNode, NetDevice } from "../cdi/spec.ts";
import { envName, hasUserNamespace, stageOf, toDeviceCgroup, toHook, toLinuxDevice, toMount } from "../oci/apply.ts";
import { hasDevice, hasHook, isAllowed, isSame } from "../oci/present.ts";
import type {
  Config,
  DeviceCgroup,
  HookStage,
  LinuxDevice as OciDevice,
  Hook as OciHook,
  Hooks as OciHooks,
  Process,
} from "../oci/spec.ts";
import { quote, SluiceError } from "../sys/error.ts";
import {
  type ContainerAdjustment,
  ContainerAdjustmentSchema,
  type Hook,
  type Hooks,
  type HooksSchema,
  type LinuxContainerAdjustmentSchema,
  type LinuxDevice,
  type LinuxDeviceCgroupSchema,
  type LinuxDeviceSchema,
  type MountSchema,
} from "./gen/nri_pb.js";
import type { ReadContainer, ReadRule } from "./subject.ts";
import { isAtLeast, type NriVersion, versionText } from "./version.ts";

/** Since when rules of the device cgroup are taken from a plugin. */
const DEVICE_RULES = 10;
/** Since when network devices and Intel's resource director are, and the container's user is told. */
const NET_AND_RDT = 11;

/** In an adjustment a key that begins so takes out what is there under the rest of it. */
const REMOVAL = "-";

type Env = { key: string; value: string };

/**
 * The adjustment that gives `container` all edits, applied in their order, and the annotations. What it has already, by
 * the engine's own CDI say, is left out: a second plugin that sets what another has set fails the creation.
 *
 * Such conflicts are the runtime's to find, since only it knows who set what: `plugins "A" and "B" both tried to set Env
 * NAME`. Seen here is only a device's path that leads to another device, which may be another plugin's doing or the pod's.
 *
 * A device's access is that of its permissions from NRI 0.10 on. Before, the runtime gives `rw` (and `m` to block
 * devices), so that a container may not make the node of a character device anew. A node without an owner belongs to the
 * container's user from 0.11 on, and before to root.
 *
 * @param edits with resolved device nodes, as for `applyEdits`
 * @param container as the runtime sent it
 * @throws SluiceError E_NRI_UNSUPPORTED for what this version of NRI cannot be told, E_NRI_CONFLICT, E_NRI_ENV for a
 * variable that cannot be set, E_EDIT_HOOK, E_EDIT_DEVICE
 */
export function toAdjustment(
  edits: readonly ContainerEdits[],
  annotations: Readonly<Record<string, string>>,
  container: ReadContainer,
  nri: NriVersion,
): ContainerAdjustment {
  const config = toConfig(container);
  refuseGroups(edits, config);
  const env = adjustEnv(edits, container.env);
  const mounts = adjustMounts(edits, config);
  const hooks = adjustHooks(edits, config);
  const linux = adjustLinux(edits, config, nri);
  return create(ContainerAdjustmentSchema, {
    annotations: adjustAnnotations(annotations, container),
    mounts,
    env,
    ...(hooks === undefined ? {} : { hooks }),
    ...(linux === undefined ? {} : { linux }),
  });
}

/**
 * The adjustments of one plan. Nearly all containers have nothing of their own where a plan puts something, but for the
 * variables by which they ask, and get the same one, which then is encoded only once (session.ts).
 */
export class Adjustments {
  readonly #edits: readonly ContainerEdits[];
  readonly #annotations: Readonly<Record<string, string>>;
  readonly #names: ReadonlySet<string>;
  readonly #destinations: ReadonlySet<string>;
  readonly #paths: ReadonlySet<string>;
  readonly #hasHooks: boolean;
  #last: { readonly of: string; readonly adjustment: ContainerAdjustment } | undefined;

  constructor(edits: readonly ContainerEdits[], annotations: Readonly<Record<string, string>>) {
    this.#edits = edits;
    this.#annotations = annotations;
    this.#names = new Set(edits.flatMap(({ env = [] }) => env.map(envName)));
    this.#destinations = new Set(edits.flatMap(({ mounts = [] }) => mounts.map((mount) => mount.containerPath)));
    this.#paths = new Set(edits.flatMap(({ deviceNodes = [] }) => deviceNodes.map((node) => node.path)));
    this.#hasHooks = edits.some(({ hooks = [] }) => hooks.length > 0);
  }

  /** As `toAdjustment`. */
  of(container: ReadContainer, nri: NriVersion): ContainerAdjustment {
    const make = () => toAdjustment(this.#edits, this.#annotations, container, nri);
    if (!this.#isBare(container)) return make();
    const of = this.#restOf(container, nri);
    if (this.#last?.of === of) return this.#last.adjustment;
    const adjustment = make();
    this.#last = { of, adjustment };
    return adjustment;
  }

  /** Whether the container has nothing where the edits put something, but for variables. */
  #isBare({ mounts, linux, hooks, annotations }: ReadContainer): boolean {
    return (
      !(this.#hasHooks && hooks !== undefined && hasAny(hooks)) &&
      !mounts.some(({ destination }) => this.#destinations.has(destination)) &&
      linux?.devices.some(({ path }) => this.#paths.has(path)) !== true &&
      !Object.keys(this.#annotations).some((name) => Object.hasOwn(annotations, name))
    );
  }

  /** What else of a container its adjustment depends on: its user, what it may use, and variables that the edits set. */
  #restOf({ env, linux, user }: ReadContainer, { major, minor }: NriVersion): string {
    let rest = `${major}.${minor} ${user && `${user.uid}:${user.gid}:${user.additionalGids}`}`;
    if (linux?.namespaces.some(({ type }) => type === "user")) rest += " in a user namespace";
    for (const { allow, type, major, minor, access } of linux?.resources?.devices ?? []) {
      rest += `\n${allow ? "+" : "-"} ${JSON.stringify(type)} ${major?.value}:${minor?.value} ${JSON.stringify(access)}`;
    }
    for (const entry of env) if (this.#names.has(envName(entry))) rest += `\n= ${JSON.stringify(entry)}`;
    return rest;
  }
}

function hasAny({ prestart, createRuntime, createContainer, startContainer, poststart, poststop }: Hooks): boolean {
  return [prestart, createRuntime, createContainer, startContainer, poststart, poststop].some((of) => of.length > 0);
}

/** Whether the adjustment asks for nothing. */
export function isEmpty({ annotations, mounts, env, hooks, linux }: ContainerAdjustment): boolean {
  return (
    mounts.length === 0 &&
    env.length === 0 &&
    hooks === undefined &&
    linux === undefined &&
    Object.keys(annotations).length === 0
  );
}

/**
 * What of the container the edits are compared with, as a config.json has it.
 *
 * @param annotations in place of its own
 */
export function toConfig(
  { env, mounts, hooks, linux, user, annotations: own }: ReadContainer,
  annotations: Readonly<Record<string, string>> = own,
): Config {
  // For each container of the node: objects without parts that most do not have are quicker made than spread.
  const process: Process = { env };
  if (user !== undefined) {
    process.user = { uid: user.uid, gid: user.gid, additionalGids: [...user.additionalGids] };
  }
  const config: Config = {
    annotations,
    mounts,
    process,
    linux: {
      namespaces: linux?.namespaces ?? [],
      devices: linux?.devices.map(toOciDevice) ?? [],
      resources: { devices: linux?.resources?.devices.map(toOciRule) ?? [] },
    },
  };
  if (hooks !== undefined && hasAny(hooks)) config.hooks = toOciHooks(hooks);
  return config;
}

function toOciDevice({ path, type, major, minor, fileMode, uid, gid }: LinuxDevice): OciDevice {
  return {
    path,
    type,
    major: Number(major),
    minor: Number(minor),
    ...(fileMode === undefined ? {} : { fileMode: fileMode.value }),
    ...(uid === undefined ? {} : { uid: uid.value }),
    ...(gid === undefined ? {} : { gid: gid.value }),
  };
}

function toOciRule({ allow, type, major, minor, access }: ReadRule): DeviceCgroup {
  const rule: DeviceCgroup = { allow, type, access };
  if (major !== undefined) rule.major = Number(major.value);
  if (minor !== undefined) rule.minor = Number(minor.value);
  return rule;
}

function toOciHooks(hooks: Hooks): OciHooks {
  const stage = (of: readonly Hook[]): OciHook[] =>
    of.map(({ path, args, env, timeout }) => ({
      path,
      args,
      env,
      ...(timeout === undefined ? {} : { timeout: Number(timeout.value) }),
    }));
  return {
    prestart: stage(hooks.prestart),
    createRuntime: stage(hooks.createRuntime),
    createContainer: stage(hooks.createContainer),
    startContainer: stage(hooks.startContainer),
    poststart: stage(hooks.poststart),
    poststop: stage(hooks.poststop),
  };
}

function unsupported(what: string): SluiceError {
  return new SluiceError(
    "E_NRI_UNSUPPORTED",
    what,
    "use a runtime with a later NRI, or give this device by the OCI runtime `sluice-runtime`, which writes it itself",
  );
}

/** A key as it is. One that begins with the mark of removal would take something out. */
function key(name: string, what: string): string {
  if (!name.startsWith(REMOVAL)) return name;
  throw unsupported(`${what} ${quote(name)} begins with "${REMOVAL}", by which NRI takes out what is there`);
}

function adjustAnnotations(wanted: Readonly<Record<string, string>>, container: ReadContainer): Record<string, string> {
  const missing = Object.entries(wanted).filter(
    ([name, value]) => !Object.hasOwn(container.annotations, name) || container.annotations[name] !== value,
  );
  return Object.fromEntries(missing.map(([name, value]) => [key(name, "the annotation"), value]));
}

/**
 * The last of each name, where it is not what counts in the container already.
 *
 * A name may stand there twice, since containerd does not join the variables of an image and a pod. Then all versions of
 * NRI replace the first, and let the second overwrite it (containerd#13432); nor do they take such a variable out. But a
 * key may hold a `=`, and then it is nobody's name and goes to the end, where it counts: `A=B=C` as the key `A=B` with
 * the value `C`. For a value without a `=` there is nothing to be said.
 */
function adjustEnv(edits: readonly ContainerEdits[], old: readonly string[]): Env[] {
  const wanted = new Map(edits.flatMap(({ env }) => (env ?? []).map((entry) => [envName(entry), entry] as const)));
  return [...wanted].flatMap(([name, entry]) => {
    const before = old.filter((other) => other.startsWith(`${name}=`));
    if (before.at(-1) === entry) return [];
    if (before.length < 2) return [keyValue(name, entry)];
    const second = entry.indexOf("=", name.length + 1);
    if (second >= 0) return [keyValue(entry.slice(0, second), entry)];
    throw new SluiceError(
      "E_NRI_ENV",
      `the variable ${quote(name)} stands twice in the container's environment, of the image and of the pod, say, and NRI cannot set such a one (containerd#13432); it was to be ${quote(entry)}`,
      "take the variable out of the pod or out of the image",
    );
  });
}

function keyValue(name: string, entry: string): Env {
  return { key: key(name, "the variable"), value: entry.slice(name.length + 1) };
}

/** The last of each destination, where it is not there already. */
function adjustMounts(edits: readonly ContainerEdits[], config: Config): MessageInitShape<typeof MountSchema>[] {
  const mounts = edits.flatMap((edit) => edit.mounts ?? []);
  if (mounts.length === 0) return [];
  const userNamespace = hasUserNamespace(config);
  const there = new Map((config.mounts ?? []).map((mount) => [mount.destination, mount]));
  const wanted = new Map(mounts.map((mount) => [mount.containerPath, toMount(mount, userNamespace)]));
  return [...wanted.values()]
    .filter((mount) => {
      const old = there.get(mount.destination);
      return (
        old === undefined ||
        (old.source ?? "") !== (mount.source ?? "") ||
        (old.type ?? "") !== (mount.type ?? "") ||
        !isSame(old.options ?? [], mount.options ?? [])
      );
    })
    .map(({ destination, type = "", source = "", options = [] }) => ({
      destination: key(destination, "the mount's destination"),
      type,
      source,
      options,
    }));
}

function adjustHooks(
  edits: readonly ContainerEdits[],
  config: Config,
): MessageInitShape<typeof HooksSchema> | undefined {
  const missing = edits.flatMap((edit) => (edit.hooks ?? []).filter((hook) => !hasHook(config, hook)));
  if (missing.length === 0) return undefined;
  const of = (stage: HookStage) =>
    missing
      .filter((hook) => stageOf(hook) === stage)
      .map((hook) => {
        const { path, args = [], env = [], timeout } = toHook(hook);
        return { path, args, env, ...(timeout === undefined ? {} : { timeout: { value: BigInt(timeout) } }) };
      });
  return {
    prestart: of("prestart"),
    createRuntime: of("createRuntime"),
    createContainer: of("createContainer"),
    startContainer: of("startContainer"),
    poststart: of("poststart"),
    poststop: of("poststop"),
  };
}

function adjustLinux(
  edits: readonly ContainerEdits[],
  config: Config,
  nri: NriVersion,
): MessageInitShape<typeof LinuxContainerAdjustmentSchema> | undefined {
  const devices: MessageInitShape<typeof LinuxDeviceSchema>[] = [];
  const rules: MessageInitShape<typeof LinuxDeviceCgroupSchema>[] = [];
  // The last node of a path, where it was named last.
  const nodes = new Map<string, DeviceNode>();
  for (const node of edits.flatMap((edit) => edit.deviceNodes ?? [])) {
    nodes.delete(node.path);
    nodes.set(node.path, node);
  }
  for (const node of nodes.values()) {
    const { isMissing, allow, deny } = missingOf(node, config, nri);
    if (isMissing) devices.push(toDevice(node, config));
    if (allow !== "") rules.push(toRule(node, true, allow));
    if (deny !== "") rules.push(toRule(node, false, deny));
  }
  const netDevices = adjustNetDevices(
    edits.flatMap((edit) => edit.netDevices ?? []),
    nri,
  );
  const rdt = adjustRdt(edits.findLast((edit) => edit.intelRdt)?.intelRdt, nri);
  if (devices.length === 0 && rules.length === 0 && netDevices === undefined && rdt === undefined) return undefined;
  return {
    devices,
    ...(rules.length === 0 ? {} : { resources: { devices: rules } }),
    ...(netDevices === undefined ? {} : { netDevices }),
    ...(rdt === undefined ? {} : { rdt }),
  };
}

interface Missing {
  /** The node itself. Where it is set, the runtime lets the container use it. */
  readonly isMissing: boolean;
  /** Access to give beside, and to take back, as letters. */
  readonly allow: string;
  readonly deny: string;
}

function missingOf(node: DeviceNode, config: Config, nri: NriVersion): Missing {
  if (node.type === "u" || node.type === "p") {
    throw unsupported(`the device node ${quote(node.path)} has type "${node.type}", which NRI cannot give`);
  }
  const other = (config.linux?.devices ?? []).find(
    (device) =>
      device.path === node.path &&
      (device.type !== node.type ||
        (device.major ?? 0) !== (node.major ?? 0) ||
        (device.minor ?? 0) !== (node.minor ?? 0)),
  );
  if (other !== undefined) {
    const numbers = `${other.type} ${other.major}:${other.minor}`;
    throw new SluiceError(
      "E_NRI_CONFLICT",
      `the container has another device (${numbers}) at ${quote(node.path)}, where ${node.type} ${node.major ?? 0}:${node.minor ?? 0} belongs: of the pod, or of an NRI plugin that is called before this one`,
      "take that device out of the pod, or let one plugin alone give it",
    );
  }
  const before = config.linux?.resources?.devices ?? [];
  const rule = { allow: true, type: node.type ?? "", major: node.major ?? 0, minor: node.minor ?? 0 };
  const has = (rules: readonly DeviceCgroup[], access: string) => isAllowed(rules, { ...rule, access });
  /** What the runtime itself allows where it sets a node, whatever its mode. */
  const given = node.type === "b" ? "rwm" : "rw";
  const wanted = toDeviceCgroup(node)?.access ?? "";
  const takesRules = isAtLeast(nri, DEVICE_RULES);

  const lacks = [...wanted].filter((access) => !has(before, access));
  const isMissing = !hasDevice(config, node) || (!takesRules && lacks.some((access) => given.includes(access)));
  const after = isMissing ? [...before, { ...rule, access: given }] : before;
  const excess = isMissing ? [...given].filter((access) => !wanted.includes(access) && !has(before, access)) : [];
  if (excess.length > 0 && !takesRules) {
    throw unsupported(
      `the device node ${quote(node.path)} is to be used with ${wanted === "" ? "no access" : `"${wanted}" only`}, and NRI ${versionText(nri)} gives "${given}"`,
    );
  }
  const more = takesRules ? [...wanted].filter((access) => !has(after, access)) : [];
  return { isMissing, allow: more.join(""), deny: excess.join("") };
}

function toDevice(node: DeviceNode, config: Config): MessageInitShape<typeof LinuxDeviceSchema> {
  const { path, type, major, minor, fileMode, uid, gid } = toLinuxDevice(node, config.process?.user);
  return {
    path: key(path, "the device's path"),
    type,
    major: BigInt(major ?? 0),
    minor: BigInt(minor ?? 0),
    ...(fileMode === undefined ? {} : { fileMode: { value: fileMode } }),
    ...(uid === undefined ? {} : { uid: { value: uid } }),
    ...(gid === undefined ? {} : { gid: { value: gid } }),
  };
}

function toRule(node: DeviceNode, allow: boolean, access: string): MessageInitShape<typeof LinuxDeviceCgroupSchema> {
  return {
    allow,
    type: node.type ?? "",
    major: { value: BigInt(node.major ?? 0) },
    minor: { value: BigInt(node.minor ?? 0) },
    access,
  };
}

function adjustNetDevices(
  devices: readonly NetDevice[],
  nri: NriVersion,
): Record<string, { name: string }> | undefined {
  const [first] = devices;
  if (first === undefined) return undefined;
  if (!isAtLeast(nri, NET_AND_RDT)) {
    throw unsupported(
      `the network interface ${quote(first.hostInterfaceName)} cannot be given: NRI ${versionText(nri)} knows none, 0.${NET_AND_RDT} is the first`,
    );
  }
  return Object.fromEntries(
    devices.map(({ hostInterfaceName, name }) => [key(hostInterfaceName, "the network interface"), { name }]),
  );
}

function adjustRdt(
  rdt: CdiIntelRdt | undefined,
  nri: NriVersion,
): MessageInitShape<typeof LinuxContainerAdjustmentSchema>["rdt"] {
  if (rdt === undefined) return undefined;
  if (!isAtLeast(nri, NET_AND_RDT)) {
    throw unsupported(
      `\`intelRdt\` cannot be given: NRI ${versionText(nri)} does not know it, 0.${NET_AND_RDT} is the first`,
    );
  }
  const strange = (["l3CacheSchema", "memBwSchema", "enableCMT", "enableMBM"] as const).find((field) => rdt[field]);
  if (strange !== undefined) throw unsupported(`\`intelRdt.${strange}\` cannot be given: NRI does not know it`);
  return {
    ...(rdt.closID ? { closId: { value: rdt.closID } } : {}),
    ...(rdt.schemata && rdt.schemata.length > 0 ? { schemata: { value: rdt.schemata } } : {}),
    ...(rdt.enableMonitoring ? { enableMonitoring: { value: true } } : {}),
  };
}

/** No version can be told of groups; what the container has is known from 0.11 on. */
function refuseGroups(edits: readonly ContainerEdits[], config: Config): void {
  const has = new Set([0, ...(config.process?.user?.additionalGids ?? [])]);
  const missing = edits.flatMap((edit) => edit.additionalGids ?? []).find((gid) => !has.has(gid));
  if (missing !== undefined) throw unsupported(`the group ${missing} (\`additionalGids\`) cannot be given by NRI`);
}
