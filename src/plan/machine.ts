import { DEFAULTS, loadSettings, type Settings } from "../policy/config.ts";
import { OsError } from "../sys/error.ts";
import type { Files, Sys } from "../sys/sys.ts";
import type { Memory } from "./memory.ts";

/** The machine for which a plan is made: where its files are read, what its administrator set, where state lives. */
export interface Machine {
  readonly sys: Sys;
  /** Specs, settings and device nodes: this machine's, or those of the tree that `--root` names. */
  readonly host: Files;
  readonly settings: Settings;
  /** The settings' file, whether it is there or not. */
  readonly settingsFile: string;
  /** CDI spec folders, later ones winning. */
  readonly specDirs: readonly string[];
  /** Receipts and caches (DESIGN.md section 5, Files). */
  readonly stateDir: string;
  /** The audit log (DESIGN.md section 5, Files). */
  readonly logDir: string;
  /** Whether the caches in `stateDir` describe these files: not so for another tree or other spec folders. */
  readonly cached: boolean;
  /** Of a process that lives, in place of the caches. */
  readonly memory?: Memory;
}

export interface MachineOptions {
  readonly root?: string;
  readonly config?: string;
  readonly specDirs?: readonly string[];
}

/** @throws SluiceError E_CONFIG_* */
export function openMachine(sys: Sys, options: MachineOptions = {}): Machine {
  const { root, specDirs } = options;
  const host = root === undefined ? sys : sys.under(root);
  const rootless = root === undefined && isRootless(sys);
  const stateDir = stateDirOf(sys, rootless);
  const named = options.config ?? (sys.env("SLUICE_CONFIG") || undefined);
  const path = named ?? configPath(sys, host, rootless);
  // A file that the user names is the user's own, also beside --root.
  const settings = loadSettings(named === undefined ? host : sys, path, {
    required: named !== undefined,
    ...(root === undefined ? { cache: { sys, dir: stateDir } } : {}),
  });
  return {
    sys,
    host,
    settings,
    settingsFile: path,
    specDirs: specDirs ?? settings.cdi.specDirs,
    stateDir,
    logDir: logDirOf(sys, rootless),
    cached: root === undefined && specDirs === undefined,
  };
}

/** This machine with the default settings: for calls that must work although somebody broke the settings file. */
export function openDefaultMachine(sys: Sys): Machine {
  const rootless = isRootless(sys);
  return {
    sys,
    host: sys,
    settings: DEFAULTS,
    settingsFile: "",
    specDirs: DEFAULTS.cdi.specDirs,
    stateDir: stateDirOf(sys, rootless),
    logDir: logDirOf(sys, rootless),
    cached: true,
  };
}

/** A folder that the environment names. A relative one is ignored, as the XDG Base Directory specification says. */
function folderFrom(sys: Sys, variable: string): string | undefined {
  const path = sys.env(variable);
  return path?.startsWith("/") ? path : undefined;
}

function stateDirOf(sys: Sys, rootless: boolean): string {
  return rootless ? `${folderFrom(sys, "XDG_RUNTIME_DIR")}/sluice` : "/run/sluice";
}

function logDirOf(sys: Sys, rootless: boolean): string {
  if (!rootless) return "/var/log/sluice";
  const home = folderFrom(sys, "XDG_STATE_HOME") ?? `${folderFrom(sys, "HOME") ?? ""}/.local/state`;
  return `${home}/sluice`;
}

function configPath(sys: Sys, host: Files, rootless: boolean): string {
  const everyones = "/etc/sluice/config.toml";
  const home = folderFrom(sys, "HOME");
  const folder = folderFrom(sys, "XDG_CONFIG_HOME") ?? (home === undefined ? undefined : `${home}/.config`);
  if (!rootless || folder === undefined) return everyones;
  const own = `${folder}/sluice/config.toml`;
  try {
    return host.stat(own) === undefined ? everyones : own;
  } catch (thrown) {
    if (thrown instanceof OsError) return own; // reading it will say what is wrong
    throw thrown;
  }
}

/**
 * Whether we act for a user without root: by our user id, or because "root" is one of a user namespace, as under
 * rootless Podman. Daemons of the machine have no XDG_RUNTIME_DIR, and are spared the look at the map.
 */
function isRootless(sys: Sys): boolean {
  if (folderFrom(sys, "XDG_RUNTIME_DIR") === undefined) return false;
  if (sys.euid !== 0) return true;
  try {
    return !/^\s*0\s+0\s+4294967295\s*$/.test(sys.readText("/proc/self/uid_map", 65_536));
  } catch (thrown) {
    if (thrown instanceof OsError) return false; // a kernel without user namespaces
    throw thrown;
  }
}
