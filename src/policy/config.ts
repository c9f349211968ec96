import type { FeatureName } from "../request/features.ts";
import { isSettled, readCache, writeCache } from "../sys/cache.ts";
import { OsError, SluiceError } from "../sys/error.ts";
import type { Files, Stat, Sys } from "../sys/sys.ts";
import { parseConfig } from "./config.part.ts";
import { SCHEMA_DIGEST } from "./gen/config-digest.ts";

/** How a container shares a device with others (DESIGN.md section 5, "Asking"). */
export type ShareMode = "exclusive" | "timeslice" | "mig" | "mps" | "limiter" | "vgpu";

/** What holds: the configuration file's settings and, for keys that it does not set, the defaults. */
export interface Settings {
  readonly runtime: {
    /** Names to look up in PATH, or absolute paths; the first that exists creates the containers. Never empty. */
    readonly runtimes: readonly string[];
  };
  readonly cdi: {
    /** Absolute paths; where two define the same device, the later wins. Never empty. */
    readonly specDirs: readonly string[];
    /** `vendor/class` of the devices that NVIDIA_VISIBLE_DEVICES names by index or UUID. */
    readonly defaultKind: string;
  };
  readonly policy: {
    /** `auto`: `allocated` for the containers of pods, `engine` for others. */
    readonly trust: "auto" | "engine" | "allocated";
    /** Whose pods may have what they name all the same. */
    readonly trustedNamespaces: readonly string[];
    /** What becomes of a pod's container that asks for, or carries, what was not allocated to it. */
    readonly unallocated: "refuse" | "report";
    readonly privileged: "refuse" | "report" | "allow";
    /** Where there are any, one must fit. */
    readonly allow: readonly Rule[];
    /** None may fit. */
    readonly deny: readonly Rule[];
    /** What beyond GPUs a container may have (request/features.ts). */
    readonly features: readonly FeatureName[];
  };
  readonly share: { readonly defaultMode: ShareMode };
  readonly daemon: DaemonSettings;
}

/** What a rule says nothing of, it is for all of. In patterns, `*` stands for any characters. */
export interface Rule {
  /** Pattern of a pod's namespace; such a rule is not for containers outside pods. */
  readonly namespace?: string;
  /** Pattern of a CDI device name. */
  readonly device?: string;
  readonly mode?: ShareMode;
}

/** Of sluiced alone (src/daemon). */
export interface DaemonSettings {
  readonly nri: boolean;
  readonly nriSocket: string;
  /** Two digits. */
  readonly nriIndex: string;
  readonly kubeletSocket: string;
  /** Milliseconds. */
  readonly evidenceDeadline: number;
  /** `127.0.0.1:9417`, `[::1]:9417`; empty for none. */
  readonly metricsAddress: string;
  readonly logLevel: "debug" | "info" | "warn" | "error";
}

/** A configuration file that passed its schema (schemas/config.json). */
export interface ConfigFile {
  readonly runtime?: { readonly runtimes?: string[] };
  readonly cdi?: { readonly spec_dirs?: string[]; readonly default_kind?: string };
  readonly policy?: Partial<Omit<Settings["policy"], "trustedNamespaces">> & {
    readonly trusted_namespaces?: readonly string[];
  };
  readonly share?: { readonly default_mode?: ShareMode };
  readonly daemon?: {
    readonly nri?: boolean;
    readonly nri_socket?: string;
    readonly nri_index?: string;
    readonly kubelet_socket?: string;
    readonly evidence_deadline?: number;
    readonly metrics_address?: string;
    readonly log_level?: DaemonSettings["logLevel"];
  };
}

/** What is wrong with a configuration file's text: a SluiceError in plain data, without the file's name. */
export interface ConfigFault {
  readonly code: "E_CONFIG_KEY" | "E_CONFIG_VALUE" | "E_CONFIG_SYNTAX";
  readonly what: string;
  readonly remedy: string;
}

/** The same as the schema's (a test compares them): most machines have no file, and read no schema. */
export const DEFAULTS: Settings = {
  runtime: { runtimes: ["runc", "crun"] },
  cdi: { specDirs: ["/etc/cdi", "/var/run/cdi"], defaultKind: "nvidia.com/gpu" },
  policy: {
    trust: "auto",
    trustedNamespaces: [],
    unallocated: "refuse",
    privileged: "report",
    features: [],
    allow: [],
    deny: [],
  },
  share: { defaultMode: "exclusive" },
  daemon: {
    nri: true,
    nriSocket: "/var/run/nri/nri.sock",
    nriIndex: "90",
    kubeletSocket: "/var/lib/kubelet/pod-resources/kubelet.sock",
    evidenceDeadline: 1200,
    metricsAddress: "",
    logLevel: "info",
  },
};

export interface ConfigOptions {
  /** The file must be there, since somebody named it. Otherwise a missing file means the defaults. */
  readonly required?: boolean;
  /**
   * Where the parsed settings are kept, so that not every container start loads a TOML parser. Leave it out for a
   * file that is not this machine's.
   */
  readonly cache?: { readonly sys: Sys; readonly dir: string };
}

/** Bytes. A file of every key with its comment has 2 KB. */
const LIMIT = 256 << 10;
const CACHE = "config.json";

/**
 * Reads the configuration file. A cached form is used only while the file's stamp is the one it was made from.
 *
 * @throws SluiceError E_CONFIG_MISSING, E_CONFIG_READ, E_CONFIG_UNTRUSTED (others can write to it), E_CONFIG_SYNTAX,
 * E_CONFIG_KEY (a key that does not exist), E_CONFIG_VALUE
 */
export function loadSettings(files: Files, path: string, options: ConfigOptions = {}): Settings {
  const stat = reading(path, () => files.stat(path));
  if (stat === undefined) {
    if (!options.required) return DEFAULTS;
    throw new SluiceError(
      "E_CONFIG_MISSING",
      `${path} does not exist`,
      "name a file that does (--config, SLUICE_CONFIG)",
    );
  }
  checkTrusted(files, path, stat);

  const { cache } = options;
  const key = `${SCHEMA_DIGEST} ${JSON.stringify(path)} ${stat.stamp}`;
  const kept = cache && cachedFile(readCache(cache.sys, cache.dir, CACHE, key));
  if (kept !== undefined) return settingsOf(kept);

  const parsed = parseConfig(reading(path, () => files.readText(path, LIMIT)));
  if ("code" in parsed) throw new SluiceError(parsed.code, `${path}: ${parsed.what}`, parsed.remedy);
  if (cache && isSettled(stat, cache.sys.now())) {
    writeCache(cache.sys, cache.dir, CACHE, key, JSON.stringify(parsed));
  }
  return settingsOf(parsed);
}

/** Whoever can write to the file, or put another in its place, decides who gets which device. */
function checkTrusted(files: Files, path: string, stat: Stat): void {
  const dir = path.slice(0, path.lastIndexOf("/")) || (path.startsWith("/") ? "/" : ".");
  const dirMode = reading(dir, () => files.stat(dir))?.mode ?? 0;
  // In a folder with the sticky bit, like /tmp, nobody replaces another's file.
  const open = (stat.mode & 0o002) !== 0 ? path : (dirMode & 0o1002) === 0o002 ? dir : undefined;
  if (open === undefined) return;
  throw new SluiceError("E_CONFIG_UNTRUSTED", `${open} can be written to by everyone`, `run: chmod o-w ${open}`);
}

function cachedFile(text: string | undefined): ConfigFile | undefined {
  if (text === undefined) return undefined;
  try {
    const file: unknown = JSON.parse(text);
    return typeof file === "object" && file !== null ? file : undefined;
  } catch {
    return undefined; // made from a file that is still there: parsed once more
  }
}

function settingsOf({ runtime, cdi, policy, share, daemon }: ConfigFile): Settings {
  return {
    runtime: { runtimes: runtime?.runtimes ?? DEFAULTS.runtime.runtimes },
    cdi: {
      specDirs: cdi?.spec_dirs ?? DEFAULTS.cdi.specDirs,
      defaultKind: cdi?.default_kind ?? DEFAULTS.cdi.defaultKind,
    },
    policy: policy === undefined ? DEFAULTS.policy : policySettingsOf(policy),
    share: { defaultMode: share?.default_mode ?? DEFAULTS.share.defaultMode },
    daemon: daemon === undefined ? DEFAULTS.daemon : daemonSettingsOf(daemon),
  };
}

function policySettingsOf(policy: NonNullable<ConfigFile["policy"]>): Settings["policy"] {
  const { trusted_namespaces: trustedNamespaces = DEFAULTS.policy.trustedNamespaces, ...rest } = policy;
  return { ...DEFAULTS.policy, ...rest, trustedNamespaces };
}

function daemonSettingsOf(daemon: NonNullable<ConfigFile["daemon"]>): DaemonSettings {
  return {
    nri: daemon.nri ?? DEFAULTS.daemon.nri,
    nriSocket: daemon.nri_socket ?? DEFAULTS.daemon.nriSocket,
    nriIndex: daemon.nri_index ?? DEFAULTS.daemon.nriIndex,
    kubeletSocket: daemon.kubelet_socket ?? DEFAULTS.daemon.kubeletSocket,
    evidenceDeadline: daemon.evidence_deadline ?? DEFAULTS.daemon.evidenceDeadline,
    metricsAddress: daemon.metrics_address ?? DEFAULTS.daemon.metricsAddress,
    logLevel: daemon.log_level ?? DEFAULTS.daemon.logLevel,
  };
}

/** Runs a file operation; its failure is told with what to do. */
function reading<T>(path: string, operation: () => T): T {
  try {
    return operation();
  } catch (error) {
    if (!(error instanceof OsError)) throw error;
    if (error.code === "EILSEQ") {
      throw new SluiceError("E_CONFIG_SYNTAX", `${path} is not UTF-8 text`, "save it as UTF-8", error);
    }
    const what =
      error.code === "EFBIG" ? `${path} has more than ${LIMIT >> 10} KiB` : `${path} is not readable (${error.code})`;
    throw new SluiceError("E_CONFIG_READ", what, "make it a regular file that this user may read", error);
  }
}
