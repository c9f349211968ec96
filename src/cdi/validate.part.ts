/**
 * Checks whether a value read from a file is a CDI spec, and whether a text is JSON. Loaded only when a spec file is new
 * or changed: what the checks found is kept in the index.
 *
 * The rules are those of the specification, plus what every OCI runtime needs to use the edits at all (absolute paths,
 * no NUL, numbers within the kernel's range). schemas/cdi-spec.json says the same for editors, but for the rules that
 * relate two places: versions, duplicates, and mounts that bind.
 */

import { quote } from "../sys/error.ts";
import { deviceNameProblem, kindProblem } from "./name.ts";
import type { Checked, Problem, SyntaxFault } from "./problem.ts";
import type { ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec } from "./spec.ts";
import { plainVersion, VERSIONS, versionNeeds, versionRank } from "./version.ts";

const MAX_PROBLEMS = 20;

const SPEC_FIELDS = ["cdiVersion", "kind", "annotations", "devices", "containerEdits"];
const DEVICE_FIELDS = ["name", "annotations", "containerEdits"];
const EDIT_FIELDS = ["env", "deviceNodes", "netDevices", "mounts", "hooks", "intelRdt", "additionalGids"];
const NODE_FIELDS = ["path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"];
const MOUNT_FIELDS = ["hostPath", "containerPath", "type", "options"];
const HOOK_FIELDS = ["hookName", "path", "args", "env", "timeout"];
const NET_FIELDS = ["hostInterfaceName", "name"];
const RDT_FIELDS = ["closID", "l3CacheSchema", "memBwSchema", "schemata", "enableMonitoring", "enableCMT", "enableMBM"];

const HOOK_NAMES = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
const NODE_TYPES = ["b", "c", "u", "p"];

/** The kernel's device numbers have 12 and 20 bits; more would silently be those of another device. */
const MAJOR_MAX = 0xfff;
const MINOR_MAX = 0xfffff;
const UINT32_MAX = 0xffffffff;
const INT32_MAX = 0x7fffffff;
/** PATH_MAX: the name becomes a folder of the resctrl file system. */
const CLOS_MAX = 4095;
/** IFNAMSIZ without its final NUL. */
const INTERFACE_MAX = 15;

// Kubernetes' rules for annotations, which the specification takes over.
const ANNOTATION_NAME_MAX = 63;
const ANNOTATION_PREFIX_MAX = 253;
const ANNOTATIONS_MAX = 256 * 1024;
const ANNOTATION_NAME = /^[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?$/;
const DNS_SUBDOMAIN = /^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$/;

type Fields = Record<string, unknown>;

/** The fields of what is not an object: that was reported, so that none of them is reported as missing too. */
const NO_FIELDS: Fields = {};

interface Check {
  readonly problems: Problem[];
  canonical: boolean;
}

function report(check: Check, pointer: string, what: string, remedy: string, code = "E_CDI_SPEC"): void {
  if (check.problems.length < MAX_PROBLEMS) check.problems.push({ code, pointer, what, remedy });
}

function isFull(check: Check): boolean {
  return check.problems.length >= MAX_PROBLEMS;
}

function typeName(value: unknown): string {
  if (value === null || value === undefined) return "nothing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "an object";
  return typeof value === "string"
    ? `the text ${quote(value, 40)}`
    : `${typeof value === "number" ? "" : "the "}${value}`;
}

/** A key as a step of a JSON pointer; a hostile one is cut. */
function step(key: string): string {
  return key.slice(0, 100).replaceAll("~", "~0").replaceAll("/", "~1");
}

/**
 * The known fields of an object under their canonical keys. The reference library matches keys without regard to case,
 * so files exist that rely on it; `null` stands for an absent field there.
 */
function fieldsOf(check: Check, value: unknown, at: string, known: readonly string[], what: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    report(
      check,
      at,
      `${what} must be an object, not ${typeName(value)}`,
      `write it with the keys ${known.join(", ")}`,
    );
    return NO_FIELDS;
  }
  const fields: Fields = {};
  const written = new Map<string, string>();
  for (const key of Object.keys(value)) {
    if (isFull(check)) break;
    let name = key;
    if (!known.includes(key)) {
      const lower = key.toLowerCase();
      const match = known.find((k) => k.toLowerCase() === lower);
      if (match === undefined) {
        report(
          check,
          `${at}/${step(key)}`,
          `${what} has no field ${quote(key)}`,
          `remove it, or correct it to one of ${known.join(", ")}`,
        );
        continue;
      }
      name = match;
      check.canonical = false;
    }
    const other = written.get(name);
    if (other !== undefined) {
      report(check, `${at}/${step(key)}`, `${quote(other)} and ${quote(key)} are the same field`, "keep one of them");
      continue;
    }
    written.set(name, key);
    const field = (value as Fields)[key];
    if (field === null) check.canonical = false;
    else fields[name] = field;
  }
  return fields;
}

/** A text that an OCI runtime can pass to the kernel; `undefined`, and a problem, where it is not one. */
function textOf(check: Check, value: unknown, at: string, what: string): string | undefined {
  if (typeof value !== "string") {
    report(check, at, `${what} must be a text, not ${typeName(value)}`, "put it in quotes");
    return undefined;
  }
  if (value.includes("\0")) {
    report(
      check,
      at,
      `${what} ${quote(value)} has a NUL character`,
      "remove it: no path, variable or argument can hold one",
    );
    return undefined;
  }
  return value;
}

function required(check: Check, fields: Fields, key: string, at: string, what: string): string | undefined {
  const value = fields[key];
  if (fields === NO_FIELDS) return undefined;
  if (value === undefined || value === "") {
    report(check, `${at}/${key}`, `${what} is ${value === "" ? "empty" : "missing"}`, `give the field ${key} a value`);
    return undefined;
  }
  return textOf(check, value, `${at}/${key}`, what);
}

/** An empty text stands for an absent field, as in the reference library. */
function optional(check: Check, fields: Fields, key: string, at: string): string | undefined {
  const value = fields[key];
  if (value === undefined) return undefined;
  if (value === "") {
    check.canonical = false;
    return undefined;
  }
  return textOf(check, value, `${at}/${key}`, key);
}

function listOf(check: Check, fields: Fields, key: string, at: string): readonly unknown[] | undefined {
  const value = fields[key];
  if (value === undefined) return undefined;
  if (Array.isArray(value)) return value;
  report(check, `${at}/${key}`, `${key} must be a list, not ${typeName(value)}`, "put it between [ and ]");
  return undefined;
}

/** A list of which every item is read by `item`; what is wrong with one must not shift the others' places. */
function each<T>(
  check: Check,
  fields: Fields,
  key: string,
  at: string,
  item: (value: unknown, at: string) => T,
): T[] | undefined {
  const list = listOf(check, fields, key, at);
  if (list === undefined) return undefined;
  const items: T[] = [];
  for (let i = 0; i < list.length && !isFull(check); i++) items.push(item(list[i], `${at}/${key}/${i}`));
  return items;
}

function texts(check: Check, fields: Fields, key: string, at: string, what: string): string[] | undefined {
  return each(check, fields, key, at, (value, place) => textOf(check, value, place, what) ?? "");
}

function variables(check: Check, fields: Fields, at: string): string[] | undefined {
  return each(check, fields, "env", at, (value, place) => {
    const text = textOf(check, value, place, "a variable") ?? "=";
    if (text !== "=" && text.indexOf("=") <= 0) {
      report(check, place, `the variable ${quote(text)} has no name before a "="`, "write it as NAME=value");
    }
    return text;
  });
}

function whole(check: Check, fields: Fields, key: string, at: string, min: number, max: number): number | undefined {
  return fields[key] === undefined ? undefined : wholeNumber(check, fields[key], `${at}/${key}`, key, min, max);
}

function wholeNumber(check: Check, value: unknown, at: string, what: string, min: number, max: number): number {
  if (typeof value === "number" && Number.isInteger(value) && value >= min && value <= max) return value;
  report(
    check,
    at,
    `${what} must be a whole number from ${min} to ${max}, not ${typeName(value)}`,
    typeof value === "string" ? "write it without quotes" : "correct the number",
  );
  return min;
}

function flag(check: Check, fields: Fields, key: string, at: string): boolean | undefined {
  const value = fields[key];
  if (value === undefined || typeof value === "boolean") return value;
  report(check, `${at}/${key}`, `${key} must be true or false, not ${typeName(value)}`, "write true or false");
  return undefined;
}

function mustBeAbsolute(check: Check, path: string | undefined, at: string, what: string): void {
  if (path !== undefined && !path.startsWith("/")) {
    report(
      check,
      at,
      `${what} ${quote(path)} is relative`,
      "write the whole path, from /: it has no folder to start from",
    );
  }
}

function oneOf(check: Check, value: string | undefined, at: string, what: string, allowed: readonly string[]): void {
  if (value !== undefined && !allowed.includes(value)) {
    report(check, at, `${quote(value)} is no ${what}`, `use one of ${allowed.join(", ")}`);
  }
}

/** Leaves out what is `undefined`: an absent field and one without value must not look different. */
function defined<T>(fields: { [K in keyof T]: T[K] | undefined }): T {
  for (const key of Object.keys(fields)) {
    if (fields[key as keyof T] === undefined) delete fields[key as keyof T];
  }
  return fields as T;
}

function deviceNode(check: Check, value: unknown, at: string): DeviceNode {
  const fields = fieldsOf(check, value, at, NODE_FIELDS, "a device node");
  const node = defined<DeviceNode>({
    path: required(check, fields, "path", at, "the path of a device node") ?? "/",
    hostPath: optional(check, fields, "hostPath", at),
    type: optional(check, fields, "type", at),
    major: whole(check, fields, "major", at, 0, MAJOR_MAX),
    minor: whole(check, fields, "minor", at, 0, MINOR_MAX),
    fileMode: whole(check, fields, "fileMode", at, 0, UINT32_MAX),
    permissions: optional(check, fields, "permissions", at),
    uid: whole(check, fields, "uid", at, 0, UINT32_MAX),
    gid: whole(check, fields, "gid", at, 0, UINT32_MAX),
  });
  mustBeAbsolute(check, node.path, `${at}/path`, "the path of a device node");
  mustBeAbsolute(check, node.hostPath, `${at}/hostPath`, "the host path of a device node");
  oneOf(check, node.type, `${at}/type`, "type of a device node", NODE_TYPES);
  if (node.permissions !== undefined && node.permissions !== "none" && /[^rwm]/.test(node.permissions)) {
    report(
      check,
      `${at}/permissions`,
      `the permissions ${quote(node.permissions)} hold something other than r, w and m`,
      "use a mix of r, w and m, or none",
    );
  }
  return node;
}

function mount(check: Check, value: unknown, at: string): Mount {
  const fields = fieldsOf(check, value, at, MOUNT_FIELDS, "a mount");
  const result = defined<Mount>({
    hostPath: required(check, fields, "hostPath", at, "the host path of a mount") ?? "/",
    containerPath: required(check, fields, "containerPath", at, "the container path of a mount") ?? "/",
    type: optional(check, fields, "type", at),
    options: texts(check, fields, "options", at, "a mount option"),
  });
  mustBeAbsolute(check, result.containerPath, `${at}/containerPath`, "the container path of a mount");
  const binds =
    result.type === undefined ||
    result.type === "bind" ||
    (result.options ?? []).some((option) => option === "bind" || option === "rbind");
  // Of another file system (tmpfs, overlay) it is the source, which need not be a path.
  if (binds) mustBeAbsolute(check, result.hostPath, `${at}/hostPath`, "the host path of a mount");
  return result;
}

function hook(check: Check, value: unknown, at: string): Hook {
  const fields = fieldsOf(check, value, at, HOOK_FIELDS, "a hook");
  const result = defined<Hook>({
    hookName: required(check, fields, "hookName", at, "the stage of a hook") ?? "prestart",
    path: required(check, fields, "path", at, "the path of a hook") ?? "/",
    args: texts(check, fields, "args", at, "an argument"),
    env: variables(check, fields, at),
    // "If set, timeout MUST be greater than zero": with 0 a runtime kills the hook as it starts.
    timeout: whole(check, fields, "timeout", at, 1, INT32_MAX),
  });
  oneOf(check, result.hookName, `${at}/hookName`, "stage of a hook", HOOK_NAMES);
  mustBeAbsolute(check, result.path, `${at}/path`, "the path of a hook");
  return result;
}

function interfaceName(check: Check, fields: Fields, key: string, at: string): string {
  const name = required(check, fields, key, at, `the field ${key} of a network device`) ?? "";
  if (name.length > INTERFACE_MAX || name === "." || name === ".." || /[/:\s]/.test(name)) {
    report(
      check,
      `${at}/${key}`,
      `${quote(name)} is no name of a network interface`,
      `use at most ${INTERFACE_MAX} characters, without / : and spaces`,
    );
  }
  return name;
}

function netDevices(check: Check, fields: Fields, at: string): NetDevice[] | undefined {
  const seen = new Set<string>();
  return each(check, fields, "netDevices", at, (value, place) => {
    const own = fieldsOf(check, value, place, NET_FIELDS, "a network device");
    const device: NetDevice = {
      hostInterfaceName: interfaceName(check, own, "hostInterfaceName", place),
      name: interfaceName(check, own, "name", place),
    };
    for (const key of ["hostInterfaceName", "name"] as const) {
      const mark = `${key}=${device[key]}`;
      if (device[key] !== "" && seen.has(mark)) {
        report(check, `${place}/${key}`, `the interface ${quote(device[key])} is named twice`, "name each one once");
      }
      seen.add(mark);
    }
    return device;
  });
}

function intelRdt(check: Check, value: unknown, at: string): IntelRdt {
  const fields = fieldsOf(check, value, at, RDT_FIELDS, "intelRdt");
  const rdt = defined<IntelRdt>({
    closID: optional(check, fields, "closID", at),
    l3CacheSchema: optional(check, fields, "l3CacheSchema", at),
    memBwSchema: optional(check, fields, "memBwSchema", at),
    schemata: texts(check, fields, "schemata", at, "a line of schemata"),
    enableMonitoring: flag(check, fields, "enableMonitoring", at),
    enableCMT: flag(check, fields, "enableCMT", at),
    enableMBM: flag(check, fields, "enableMBM", at),
  });
  const id = rdt.closID;
  // "/" is the root class, which has no folder of its own.
  if (id !== undefined && id !== "/" && (id === "." || id === ".." || id.length > CLOS_MAX || /[/\n]/.test(id))) {
    report(check, `${at}/closID`, `${quote(id)} is no name of a class of service`, "use a plain file name, or /");
  }
  return rdt;
}

function containerEdits(check: Check, value: unknown, at: string): ContainerEdits {
  const fields = fieldsOf(check, value, at, EDIT_FIELDS, "containerEdits");
  return defined<ContainerEdits>({
    env: variables(check, fields, at),
    deviceNodes: each(check, fields, "deviceNodes", at, (item, place) => deviceNode(check, item, place)),
    netDevices: netDevices(check, fields, at),
    mounts: each(check, fields, "mounts", at, (item, place) => mount(check, item, place)),
    hooks: each(check, fields, "hooks", at, (item, place) => hook(check, item, place)),
    intelRdt: fields["intelRdt"] === undefined ? undefined : intelRdt(check, fields["intelRdt"], `${at}/intelRdt`),
    additionalGids: each(check, fields, "additionalGids", at, (item, place) =>
      wholeNumber(check, item, place, "a group id", 0, UINT32_MAX),
    ),
  });
}

/** In words what is wrong with an annotation's key: a name with an optional DNS subdomain before a `/`. */
function annotationProblem(key: string): string | undefined {
  const parts = key.toLowerCase().split("/");
  const name = parts.at(-1) ?? "";
  const prefix = parts.length === 2 ? parts[0] : undefined;
  if (parts.length > 2) return "it has more than one /";
  if (prefix !== undefined && (prefix.length > ANNOTATION_PREFIX_MAX || !DNS_SUBDOMAIN.test(prefix))) {
    return "what stands before its / is no DNS name";
  }
  if (name.length > ANNOTATION_NAME_MAX) return `it has more than ${ANNOTATION_NAME_MAX} characters`;
  return ANNOTATION_NAME.test(name) ? undefined : "it is not made of letters, digits, - _ and .";
}

function annotations(check: Check, fields: Fields, at: string): Record<string, string> | undefined {
  const value = fields["annotations"];
  const place = `${at}/annotations`;
  if (value === undefined) return undefined;
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    report(check, place, `annotations must be an object, not ${typeName(value)}`, "write it as keys with texts");
    return undefined;
  }
  const result: Record<string, string> = {};
  let size = 0;
  for (const key of Object.keys(value)) {
    if (isFull(check)) break;
    const raw = (value as Fields)[key];
    const problem = annotationProblem(key);
    const pointer = `${place}/${step(key)}`;
    if (problem !== undefined) {
      report(check, pointer, `the annotation ${quote(key)} cannot be: ${problem}`, "use a Kubernetes annotation key");
      continue;
    }
    if (raw === null) check.canonical = false;
    const text = raw === null ? "" : textOf(check, raw, pointer, `the annotation ${quote(key)}`);
    if (text === undefined) continue;
    size += key.length + text.length;
    result[key] = text;
  }
  if (size > ANNOTATIONS_MAX) {
    report(check, place, `the annotations hold ${size} characters, more than ${ANNOTATIONS_MAX}`, "shorten them");
  }
  return result;
}

function isEmpty(edits: ContainerEdits): boolean {
  return Object.values(edits).every((value) => Array.isArray(value) && value.length === 0);
}

function device(check: Check, value: unknown, at: string): Device {
  const fields = fieldsOf(check, value, at, DEVICE_FIELDS, "a device");
  const name = required(check, fields, "name", at, "the name of a device") ?? "";
  const problem = name === "" ? undefined : deviceNameProblem(name);
  if (problem !== undefined) {
    report(check, `${at}/name`, problem, "use letters, digits and _ - . : between a letter or digit", "E_CDI_NAME");
  }
  const before = check.problems.length;
  const edits = containerEdits(check, fields["containerEdits"] ?? {}, `${at}/containerEdits`);
  // The specification calls containerEdits optional; its schema and library want at least one edit, and so do we: a
  // device without edits gives a container nothing that it could have asked for.
  if (fields !== NO_FIELDS && check.problems.length === before && isEmpty(edits)) {
    report(
      check,
      `${at}/containerEdits`,
      `the device ${quote(name)} has no edits`,
      `give it at least one of ${EDIT_FIELDS.join(", ")}`,
    );
  }
  return defined<Device>({ name, annotations: annotations(check, fields, at), containerEdits: edits });
}

function checkVersion(check: Check, spec: Spec): void {
  const declared = versionRank(spec.cdiVersion);
  if (declared < 0) {
    const old = /^0\.[12]\.0$/.test(plainVersion(spec.cdiVersion));
    report(
      check,
      "/cdiVersion",
      `the CDI version ${quote(spec.cdiVersion)} is ${old ? "too old" : "unknown"}`,
      old ? "declare at least 0.3.0" : `declare one of ${VERSIONS.join(", ")}`,
      "E_CDI_VERSION",
    );
    return;
  }
  for (const need of versionNeeds(spec)) {
    if (versionRank(need.version) > declared) {
      report(
        check,
        need.pointer,
        `${need.reason} needs CDI ${need.version}, and the spec declares ${spec.cdiVersion}`,
        `declare at least ${need.version}`,
        "E_CDI_VERSION",
      );
    }
  }
  if (declared < versionRank("1.1.0")) return;
  const removed = (edits: ContainerEdits | undefined, at: string): void => {
    for (const key of ["enableCMT", "enableMBM"] as const) {
      if (edits?.intelRdt?.[key] === undefined) continue;
      report(
        check,
        `${at}/intelRdt/${key}`,
        `CDI 1.1.0 removed the field ${key}, and the spec declares ${spec.cdiVersion}`,
        "use enableMonitoring, or declare 1.0.0",
        "E_CDI_VERSION",
      );
    }
  };
  removed(spec.containerEdits, "/containerEdits");
  spec.devices.forEach((item, i) => {
    removed(item.containerEdits, `/devices/${i}/containerEdits`);
  });
}

/** Checks a value of any type against everything that the specification asks of a spec. Never throws. */
export function checkSpec(value: unknown): Checked<Spec> {
  const check: Check = { problems: [], canonical: true };
  const fields = fieldsOf(check, value, "", SPEC_FIELDS, "a CDI spec");
  if (isFull(check) || Object.keys(fields).length === 0) {
    if (check.problems.length === 0) report(check, "", "the CDI spec is empty", "give it cdiVersion, kind and devices");
    return { spec: undefined, canonical: false, problems: check.problems };
  }

  const cdiVersion = required(check, fields, "cdiVersion", "", "the field cdiVersion");
  const kind = required(check, fields, "kind", "", "the field kind");
  const problem = kind === undefined ? undefined : kindProblem(kind);
  if (problem !== undefined) {
    report(check, "/kind", problem, "write it as vendor/class, for example nvidia.com/gpu", "E_CDI_NAME");
  }
  const given = fields["containerEdits"];
  const spec = defined<Spec>({
    cdiVersion: cdiVersion ?? "",
    kind: kind ?? "",
    annotations: annotations(check, fields, ""),
    devices: each(check, fields, "devices", "", (item, place) => device(check, item, place)) ?? [],
    containerEdits: given === undefined ? undefined : containerEdits(check, given, "/containerEdits"),
  });

  const list = fields["devices"];
  if (list === undefined || (Array.isArray(list) && list.length === 0)) {
    report(check, "/devices", "the spec has no devices", "give it at least one device");
  }
  const seen = new Set<string>();
  spec.devices.forEach((item, i) => {
    if (item.name !== "" && seen.has(item.name)) {
      report(check, `/devices/${i}/name`, `the device ${quote(item.name)} is there twice`, "name each device once");
    }
    seen.add(item.name);
  });
  if (cdiVersion !== undefined) checkVersion(check, spec);

  const ok = check.problems.length === 0;
  return { spec: ok ? spec : undefined, canonical: ok && check.canonical, problems: check.problems };
}

/** Far more than the 7 levels of a spec; the JSON parsers of both engines take more than this. */
const MAX_DEPTH = 64;
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const WORD = /true|false|null/y;

function after(pattern: RegExp, text: string, at: number): number {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : at;
}

/** Where the string that starts at `at` ends (after its quote), or -1. */
function stringEnd(text: string, at: number): number {
  for (let end = text.indexOf('"', at + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let escapes = end;
    while (text.charCodeAt(escapes - 1) === 0x5c) escapes--;
    if ((end - escapes) % 2 === 0) return end + 1;
  }
  return -1;
}

/**
 * What in a text is not JSON (RFC 8259), or a key that one object has twice, which `JSON.parse` takes without a word.
 * Says the same in every engine, unlike their own messages. `undefined` for good JSON.
 */
export function scanJson(text: string): SyntaxFault | undefined {
  let at = 0;
  const fault = (what: string): SyntaxFault => {
    const before = text.slice(0, at);
    return {
      line: before.split("\n").length,
      column: at - before.lastIndexOf("\n"),
      what: at >= text.length ? `the text ends, but ${what}` : what,
    };
  };
  // Of each open object the keys so far; of each open list `undefined`.
  const open: (Set<string> | undefined)[] = [];
  let closes = false;
  for (;;) {
    at = after(SPACE, text, at);
    const keys = open.at(-1);
    const first = text.charAt(at);
    if (closes && (first === "}" || first === "]")) {
      if ((first === "}") !== (keys !== undefined)) return fault(`"${first}" closes what was opened otherwise`);
      open.pop();
      at++;
    } else {
      if (keys !== undefined) {
        const end = first === '"' ? stringEnd(text, at) : -1;
        if (end < 0) return fault('a key in "quotes" was expected');
        let key: string;
        try {
          key = JSON.parse(text.slice(at, end));
        } catch {
          return fault("this key has a bad escape or a control character");
        }
        if (keys.has(key)) return fault(`the key ${quote(key)} is there twice`);
        keys.add(key);
        const colon = after(SPACE, text, end);
        at = colon;
        if (text.charAt(colon) !== ":") return fault('":" was expected after a key');
        at = after(SPACE, text, colon + 1);
      }
      const start = text.charAt(at);
      if (start === "{" || start === "[") {
        if (open.length === MAX_DEPTH) return fault(`it is nested more than ${MAX_DEPTH} levels deep`);
        open.push(start === "{" ? new Set() : undefined);
        at++;
        closes = true;
        continue;
      }
      const end = start === '"' ? stringEnd(text, at) : Math.max(after(NUMBER, text, at), after(WORD, text, at));
      if (end <= at) return fault(start === '"' ? "a text has no closing quote" : "a value was expected");
      if (start === '"') {
        try {
          JSON.parse(text.slice(at, end));
        } catch {
          return fault("this text has a bad escape or a control character");
        }
      }
      at = end;
    }
    // A value is complete: what may follow depends on what it stands in.
    at = after(SPACE, text, at);
    if (open.length === 0) return at < text.length ? fault("there is something after the end of the value") : undefined;
    const next = text.charAt(at);
    closes = next === "}" || next === "]";
    if (!closes) {
      if (next !== ",") return fault(`"," or "${open.at(-1) === undefined ? "]" : "}"}" was expected`);
      at++;
    }
  }
}
