/**
 * The container engines of a machine: which are installed, in which version, and what of their settings decides whether
 * a container gets its GPU. Read from their files and from what `--version` prints; no engine is asked over its socket.
 * A part, since no container start needs it.
 */

import "../sys/no-date.ts";
import { parse } from "smol-toml";
import { OsError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";

export type EngineName = "docker" | "containerd" | "crio" | "podman";

/** A runtime of an engine's settings whose program is Sluice's. */
export interface EngineRuntime {
  /** The engine's name for it. */
  readonly name: string;
  readonly path: string;
  /** containerd: patterns of the annotations that it passes on, of pods and of containers. */
  readonly podAnnotations?: readonly string[];
  readonly containerAnnotations?: readonly string[];
}

/** What an engine's settings, and its version, say of NRI: of the plugins that it asks about pods' containers. */
export interface EngineNri {
  /** `none` is a version without; absent where neither says. */
  readonly state?: "on" | "off" | "none";
  /** Where plugins connect that it has not started itself. */
  readonly socket: string;
  /** Whether it lets them. */
  readonly isOpen: boolean;
  /** The folder of the plugins that it starts itself. */
  readonly pluginDir: string;
  /** Milliseconds that a plugin has for an answer. */
  readonly requestTimeout: number;
  /** Whether it can hold back a container that a plugin has not seen; absent where its version is not known. */
  readonly hasValidator?: boolean;
  /** What holds containers back; absent where that is not switched on. */
  readonly validator?: {
    /** The plugins without which no container is created. */
    readonly required: readonly string[];
    /** The annotation by which a pod excepts itself. */
    readonly toleratedBy?: string;
    readonly rejectsHooks: boolean;
  };
}

export interface Engine {
  readonly name: EngineName;
  /** As people call it: `Docker`. */
  readonly title: string;
  readonly program: string;
  /** `28.5.2`; absent where it was not asked, or did not say. */
  readonly version?: string;
  /** The newest version of CDI specs that it takes; absent where its own version is not known, or it has no CDI. */
  readonly newestCdi?: string;
  /** Whether it does CDI by itself: `none` is an engine without; absent where its version is not known. */
  readonly cdi?: "on" | "off" | "none";
  /** Where it looks for CDI specs; absent where its settings do not say, which are CDI's two folders then. */
  readonly specDirs?: readonly string[];
  /** Settings files that are there, and what is wrong with those that cannot be used. */
  readonly settings: readonly { readonly path: string; readonly fault?: string }[];
  readonly runtimes: readonly EngineRuntime[];
  /** containerd, CRI-O: the name of the runtime of pods that name none; absent where the version must be known for it. */
  readonly defaultRuntime?: string;
  /** containerd, CRI-O. */
  readonly nri?: EngineNri;
}

const FOLDERS = [
  "/usr/local/sbin",
  "/usr/local/bin",
  "/usr/sbin",
  "/usr/bin",
  "/sbin",
  "/bin",
  "/run/current-system/sw/bin",
];

interface Kind {
  readonly name: EngineName;
  readonly title: string;
  readonly program: string;
  /** The first version of each that takes CDI specs of a newer version, oldest first. */
  readonly cdi: readonly (readonly [since: string, newest: string])[];
}

/**
 * Which CDI an engine takes is that of the CDI library that it is built with. Source: go.mod (Docker: vendor.mod) at
 * each release's tag, and `CurrentVersion` in specs-go/config.go of that library. A row counts until the next: some
 * got a newer library late in an old series (containerd 1.7.27, Docker 25.0.17).
 */
const KINDS: readonly Kind[] = [
  {
    name: "docker",
    title: "Docker",
    program: "dockerd",
    cdi: [
      ["25.0.0", "0.6.0"],
      ["25.0.17", "0.8.0"],
      ["26.0.0", "0.6.0"],
      ["26.1.0", "0.7.0"],
      ["27.4.0", "0.8.0"],
      ["28.1.0", "1.0.0"],
      ["29.2.0", "1.1.0"],
    ],
  },
  {
    name: "containerd",
    title: "containerd",
    program: "containerd",
    cdi: [
      ["1.7.0", "0.5.0"],
      ["1.7.12", "0.6.0"],
      ["1.7.16", "0.7.0"],
      ["1.7.27", "0.8.0"],
      ["2.0.0", "0.8.0"],
      ["2.0.5", "1.0.0"],
      ["2.2.1", "1.1.0"],
    ],
  },
  {
    name: "crio",
    title: "CRI-O",
    program: "crio",
    cdi: [
      ["1.24.0", "0.3.0"],
      ["1.25.0", "0.5.0"],
      ["1.28.0", "0.6.0"],
      ["1.30.0", "0.7.0"],
      ["1.31.0", "0.8.0"],
      ["1.33.0", "1.0.0"],
      ["1.35.0", "1.1.0"],
    ],
  },
  {
    name: "podman",
    title: "Podman",
    program: "podman",
    cdi: [
      ["4.0.0", "0.2.0"],
      ["4.1.0", "0.4.0"],
      ["4.3.0", "0.5.0"],
      ["4.7.0", "0.6.0"],
      ["5.1.0", "0.7.0"],
      ["5.2.0", "0.8.0"],
      ["5.5.0", "1.0.0"],
    ],
  },
];

/**
 * @param ask what a program prints for `--version`; `undefined` where it failed. Absent of another tree, whose programs
 * we do not run
 */
export function readEngines(files: Files, ask?: (program: string) => string | undefined): Engine[] {
  return KINDS.flatMap((kind) => {
    const program = FOLDERS.map((folder) => `${folder}/${kind.program}`).find((path) => isProgram(files, path));
    if (program === undefined) return [];
    const version = versionIn(ask?.(program) ?? "");
    const { faults, ...settings } = SETTINGS[kind.name](files);
    const newestCdi = version === undefined ? undefined : cdiOf(kind, version);
    const defaultRuntime = settings.defaultRuntime ?? builtInRuntime(kind.name, version);
    const nri = settings.nri && nriOf(kind.name, version, settings.nri);
    return [
      {
        name: kind.name,
        title: kind.title,
        program,
        ...(version === undefined ? {} : { version, cdi: stateOf(kind.name, version, newestCdi, settings) }),
        ...(newestCdi === undefined ? {} : { newestCdi }),
        ...(settings.specDirs === undefined ? {} : { specDirs: settings.specDirs }),
        settings: faults,
        runtimes: settings.runtimes,
        ...(defaultRuntime === undefined ? {} : { defaultRuntime }),
        ...(nri === undefined ? {} : { nri }),
      },
    ];
  });
}

/** `DefaultRuntime` in CRI-O's pkg/config: crun since 1.31. */
function builtInRuntime(name: EngineName, version: string | undefined): string | undefined {
  if (name === "containerd") return "runc";
  if (name !== "crio" || version === undefined) return undefined;
  return compareVersions(version, "1.31") >= 0 ? "crun" : "runc";
}

/** Since when an engine has NRI, has it switched on if nothing is set, and has NRI's validator (0.10, by its go.mod). */
const NRI_SINCE = {
  containerd: { any: "1.7", on: "2.0", validator: "2.2" },
  crio: { any: "1.26", on: "1.30", validator: "1.34" },
} as const;

/** NRI's own defaults (pkg/adaptation), in both engines. */
const NRI_DEFAULTS = { socket: "/var/run/nri/nri.sock", pluginDir: "/opt/nri/plugins", requestTimeout: 2000 };

/** The keys of the same settings in containerd's table io.containerd.nri.v1.nri and in CRI-O's crio.nri. */
const NRI_KEYS = {
  containerd: {
    isSet: "disable",
    socket: "socket_path",
    isClosed: "disable_connections",
    pluginDir: "plugin_path",
    requestTimeout: "plugin_request_timeout",
    validate: "enable",
    required: "required_plugins",
    tolerated: "tolerate_missing_plugins_annotation",
    hooks: "reject_oci_hook_adjustment",
  },
  crio: {
    isSet: "enable_nri",
    socket: "nri_listen",
    isClosed: "nri_disable_connections",
    pluginDir: "nri_plugin_dir",
    requestTimeout: "nri_plugin_request_timeout",
    validate: "nri_enable_default_validator",
    required: "nri_validator_required_plugins",
    tolerated: "nri_validator_tolerate_missing_plugins_annotation",
    hooks: "nri_validator_reject_oci_hook_adjustment",
  },
} as const;

/** What an engine does of NRI by these tables, of which later ones win, and by its version. */
function nriOf(
  name: EngineName,
  version: string | undefined,
  { tables, isTakenOut }: NonNullable<Settings["nri"]>,
): EngineNri | undefined {
  if (name !== "containerd" && name !== "crio") return undefined;
  const isFrom = (first: string): boolean | undefined =>
    version === undefined ? undefined : compareVersions(version, first) >= 0;
  // containerd 1.7 takes a plugin's whole table from the last file that has it.
  const counting = name === "containerd" && isFrom("2.0") === false ? tables.slice(-1) : tables;
  const said = (...keys: string[]): unknown => lastOf(counting.map((table) => at(table, ...keys)));
  const text = (key: string): string | undefined => {
    const value = said(key);
    return typeof value === "string" && value !== "" ? value : undefined;
  };
  const keys = NRI_KEYS[name];
  const validator = (key: string): unknown => said("default_validator", key);
  const tolerated = validator(keys.tolerated);
  const state = stateOfNri(name, said(keys.isSet), isTakenOut, isFrom);
  const hasValidator = isFrom(NRI_SINCE[name].validator);
  return {
    ...(state === undefined ? {} : { state }),
    socket: text(keys.socket) ?? NRI_DEFAULTS.socket,
    isOpen: said(keys.isClosed) !== true,
    pluginDir: text(keys.pluginDir) ?? NRI_DEFAULTS.pluginDir,
    requestTimeout: milliseconds(said(keys.requestTimeout)) ?? NRI_DEFAULTS.requestTimeout,
    ...(hasValidator === undefined ? {} : { hasValidator }),
    ...(validator(keys.validate) === true && hasValidator !== false
      ? {
          validator: {
            required: texts(validator(keys.required)) ?? [],
            ...(typeof tolerated === "string" && tolerated !== "" ? { toleratedBy: tolerated } : {}),
            rejectsHooks: validator(keys.hooks) === true,
          },
        }
      : {}),
  };
}

/** @param set the switch in the settings, where it is there: of CRI-O that NRI is on, of containerd that it is off */
function stateOfNri(
  name: "containerd" | "crio",
  set: unknown,
  isTakenOut: boolean,
  isFrom: (first: string) => boolean | undefined,
): EngineNri["state"] {
  const { any, on } = NRI_SINCE[name];
  if (isFrom(any) === false) return "none";
  if (isTakenOut) return "off";
  const isOn = typeof set === "boolean" ? set === (name === "crio") : isFrom(on);
  return isOn === undefined ? undefined : isOn ? "on" : "off";
}

/** Of one unit of Go's durations, in milliseconds. */
const UNITS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};

/** A duration as Go writes it: `2s`, `1m30s`; `undefined` of what is none. */
function milliseconds(duration: unknown): number | undefined {
  if (typeof duration !== "string" || !/^(?:\d{1,9}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h)){1,8}$/.test(duration)) {
    return undefined;
  }
  let sum = 0;
  for (const [, number, unit] of duration.matchAll(/([\d.]+)([a-zµ]+)/g))
    sum += Number(number) * (UNITS[unit ?? ""] ?? 0);
  return sum;
}

/** `Docker version 28.5.2, build ...`, `containerd NAME v1.7.24 ...`, `podman version 5.8.6`, `crio version 1.35.0`. */
function versionIn(text: string): string | undefined {
  return /(?:^|\s)v?(\d{1,4}\.\d{1,4}(?:\.\d{1,4})?)/.exec(text)?.[1];
}

/** Below 0 if `a` is the older one. Numbers that are missing are 0. */
export function compareVersions(a: string, b: string): number {
  const [x, y] = [a.split(".").map(Number), b.split(".").map(Number)];
  for (let i = 0; i < Math.max(x.length, y.length); i++) {
    const difference = (x[i] ?? 0) - (y[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function cdiOf({ cdi }: Kind, version: string): string | undefined {
  return cdi.filter(([since]) => compareVersions(since, version) <= 0).at(-1)?.[1];
}

/** What an engine's settings say of our concerns. */
interface Settings {
  readonly enabled?: boolean;
  readonly specDirs?: readonly string[];
  readonly runtimes: readonly EngineRuntime[];
  readonly defaultRuntime?: string;
  /** The tables of NRI's settings, of each file that has one, and whether the list of disabled plugins names it. */
  readonly nri?: { readonly tables: readonly unknown[]; readonly isTakenOut: boolean };
}

/**
 * CDI is off by default in Docker before 28.2 (daemon/config, `features.cdi`) and in containerd 1.7 (`enable_cdi` of the
 * CRI plugin), on after; Podman and CRI-O have no switch.
 */
function stateOf(
  name: EngineName,
  version: string,
  newestCdi: string | undefined,
  { enabled, specDirs }: Settings,
): "on" | "off" | "none" {
  if (newestCdi === undefined) return "none";
  // Docker takes an empty path for "no folders", and then has no CDI.
  if (name === "docker" && specDirs?.length === 1 && specDirs[0] === "") return "off";
  const since = { docker: "28.2.0", containerd: "2.0.0", crio: "0", podman: "0" }[name];
  return (enabled ?? compareVersions(version, since) >= 0) ? "on" : "off";
}

interface Document {
  readonly path: string;
  readonly fault?: string;
  readonly content?: unknown;
}

type SettingsReader = (files: Files) => Settings & { readonly faults: Engine["settings"] };

/** containerd's name for its plugin that NRI is. */
const CONTAINERD_NRI = "io.containerd.nri.v1.nri";

const SETTINGS: Readonly<Record<EngineName, SettingsReader>> = {
  docker: (files) => {
    const documents = load(files, ["/etc/docker/daemon.json"], JSON.parse);
    const content = documents[0]?.content;
    const enabled = at(content, "features", "cdi");
    return {
      ...(typeof enabled === "boolean" ? { enabled } : {}),
      ...specDirsOf(at(content, "cdi-spec-dirs")),
      runtimes: tables(at(content, "runtimes")).flatMap(([name, runtime]) => ours(name, at(runtime, "path"))),
      faults: faultsOf(documents),
    };
  },
  containerd: (files) => {
    const [main] = load(files, ["/etc/containerd/config.toml"], toml);
    const documents =
      main === undefined ? [] : [main, ...load(files, imports(files, at(main.content, "imports")), toml)];
    const plugins = documents.flatMap(({ content }) =>
      ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"].map((id) => at(content, "plugins", id)),
    );
    const enabled = plugins.map((plugin) => at(plugin, "enable_cdi")).filter((value) => typeof value === "boolean");
    return {
      ...(enabled.length === 0 ? {} : { enabled: enabled.at(-1) as boolean }),
      ...specDirsOf(lastOf(plugins.map((plugin) => at(plugin, "cdi_spec_dirs")))),
      runtimes: plugins.flatMap((plugin) =>
        tables(at(plugin, "containerd", "runtimes")).flatMap(([name, runtime]) =>
          ours(name, at(runtime, "options", "BinaryName")).map((own) => ({
            ...own,
            podAnnotations: texts(at(runtime, "pod_annotations")) ?? [],
            containerAnnotations: texts(at(runtime, "container_annotations")) ?? [],
          })),
        ),
      ),
      ...nameOf(lastOf(plugins.map((plugin) => at(plugin, "containerd", "default_runtime_name")))),
      nri: {
        tables: documents.flatMap(({ content }) => at(content, "plugins", CONTAINERD_NRI) ?? []),
        isTakenOut: documents.some(({ content }) => texts(at(content, "disabled_plugins"))?.includes(CONTAINERD_NRI)),
      },
      faults: faultsOf(documents),
    };
  },
  crio: (files) => {
    const documents = load(files, ["/etc/crio/crio.conf", ...folder(files, "/etc/crio/crio.conf.d", "")], toml);
    const runtime = documents.map(({ content }) => at(content, "crio", "runtime"));
    return {
      ...specDirsOf(lastOf(runtime.map((section) => at(section, "cdi_spec_dirs")))),
      runtimes: runtime.flatMap((section) =>
        tables(at(section, "runtimes")).flatMap(([name, one]) => ours(name, at(one, "runtime_path"))),
      ),
      ...nameOf(lastOf(runtime.map((section) => at(section, "default_runtime")))),
      nri: { tables: documents.flatMap(({ content }) => at(content, "crio", "nri") ?? []), isTakenOut: false },
      faults: faultsOf(documents),
    };
  },
  podman: (files) => {
    const paths = ["/usr/share/containers/containers.conf", "/etc/containers/containers.conf"];
    const documents = load(files, [...paths, ...folder(files, "/etc/containers/containers.conf.d", ".conf")], toml);
    const engine = documents.map(({ content }) => at(content, "engine"));
    return {
      ...specDirsOf(lastOf(engine.map((section) => at(section, "cdi_spec_dirs")))),
      runtimes: engine.flatMap((section) =>
        tables(at(section, "runtimes")).flatMap(([name, list]) =>
          (texts(list) ?? []).flatMap((path) => ours(name, path)),
        ),
      ),
      faults: faultsOf(documents),
    };
  },
};

/** Bytes. A containerd configuration with everything in it has 10 KB. */
const LIMIT = 1 << 20;
/** Depth of tables; bounds the parser's recursion. */
const MAX_DEPTH = 32;

function toml(text: string): unknown {
  return parse(text, { maxDepth: MAX_DEPTH, useLegacyDate: false });
}

/** The files that are there. */
function load(files: Files, paths: readonly string[], read: (text: string) => unknown): Document[] {
  return paths.flatMap((path): Document[] => {
    try {
      if (files.stat(path) === undefined) return [];
      return [{ path, content: read(files.readText(path, LIMIT)) }];
    } catch (thrown) {
      if (thrown instanceof OsError) return [{ path, fault: `it cannot be read (${thrown.code})` }];
      const [first = ""] = (thrown as Error).message.split("\n");
      return [{ path, fault: first }];
    }
  });
}

function faultsOf(documents: readonly Document[]): Engine["settings"] {
  return documents.map(({ path, fault }) => ({ path, ...(fault === undefined ? {} : { fault }) }));
}

/** Files of a folder by their ending, in the order of their names. */
function folder(files: Files, path: string, ending: string): string[] {
  try {
    return (files.list(path) ?? []).filter(({ name }) => name.endsWith(ending)).map(({ name }) => `${path}/${name}`);
  } catch (thrown) {
    if (thrown instanceof OsError) return [];
    throw thrown;
  }
}

/** What containerd's `imports` names: paths, with `*` in the last step, from the folder of the main file. */
function imports(files: Files, list: unknown): string[] {
  return (texts(list) ?? []).flatMap((entry) => {
    const path = entry.startsWith("/") ? entry : `/etc/containerd/${entry}`;
    const slash = path.lastIndexOf("/");
    const pattern = path.slice(slash + 1);
    if (!pattern.includes("*")) return [path];
    return folder(files, path.slice(0, slash), "").filter((one) => matches(pattern, one.slice(slash + 1)));
  });
}

/**
 * Whether a pattern of Go's path.Match, as containerd takes them, names a text: `*` and `?` stand for no slash. One with
 * a class of characters in it is taken to match.
 */
export function matches(pattern: string, text: string): boolean {
  if (/[[\\]/.test(pattern)) return true;
  const form = pattern
    .replace(/[.+^${}()|]/g, "\\$&")
    .replace(/\*+/g, "[^/]*")
    .replaceAll("?", "[^/]");
  return new RegExp(`^${form}$`).test(text);
}

/** A value deep in a document, where all on the way is there. */
function at(value: unknown, ...keys: string[]): unknown {
  let found = value;
  for (const key of keys) {
    if (typeof found !== "object" || found === null || !Object.hasOwn(found, key)) return undefined;
    found = (found as Readonly<Record<string, unknown>>)[key];
  }
  return found;
}

function tables(value: unknown): [string, unknown][] {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? Object.entries(value) : [];
}

function texts(value: unknown): string[] | undefined {
  return Array.isArray(value) ? value.filter((one) => typeof one === "string") : undefined;
}

function lastOf(values: readonly unknown[]): unknown {
  return values.filter((value) => value !== undefined).at(-1);
}

function specDirsOf(value: unknown): { specDirs?: string[] } {
  const specDirs = texts(value);
  return specDirs === undefined ? {} : { specDirs };
}

function nameOf(value: unknown): { defaultRuntime?: string } {
  return typeof value === "string" && value !== "" ? { defaultRuntime: value } : {};
}

/** A runtime, if its program is Sluice's by name. */
function ours(name: string, path: unknown): EngineRuntime[] {
  if (typeof path !== "string" || !/(?:^|\/)sluice(?:-runtime)?$/.test(path)) return [];
  return [{ name, path }];
}

function isProgram(files: Files, path: string): boolean {
  try {
    const stat = files.stat(path);
    return stat?.kind === "file" && (stat.mode & 0o111) !== 0;
  } catch (thrown) {
    if (thrown instanceof OsError) return false;
    throw thrown;
  }
}
