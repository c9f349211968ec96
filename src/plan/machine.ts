import { DEFAULT_SPEC_DIRS } from "../cdi/registry.ts";
import { loadSettings, type Settings } from "../policy/config.ts";
import { OsError } from "../sys/error.ts";
import type { Files, Sys } from "../sys/sys.ts";

/** The machine for which a plan is made: where its files are read, what its administrator set, where state lives. */
export interface Machine {
  readonly sys: Sys;
  /** Specs, settings and device nodes: this machine's, or those of the tree that `--root` names. */
  readonly host: Files;
  readonly settings: Settings;
  /** CDI spec folders, later ones winning. */
  readonly specDirs: readonly string[];
  /** Receipts and caches (DESIGN.md section 5, Files). */
  readonly stateDir: string;
  /** Whether the caches in `stateDir` describe these files: not so for another tree or other spec folders. */
  readonly cached: boolean;
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
  const stateDir = rootless ? `${sys.env("XDG_RUNTIME_DIR")}/sluice` : "/run/sluice";
  const named = options.config ?? sys.env("SLUICE_CONFIG");
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
    specDirs: specDirs ?? settings.cdi.specDirs ?? DEFAULT_SPEC_DIRS,
    stateDir,
    cached: root === undefined && specDirs === undefined,
  };
}

function configPath(sys: Sys, host: Files, rootless: boolean): string {
  const home = sys.env("XDG_CONFIG_HOME") ?? `${sys.env("HOME")}/.config`;
  const own = `${home}/sluice/config.toml`;
  return rootless && host.stat(own) !== undefined ? own : "/etc/sluice/config.toml";
}

/**
 * Whether we act for a user without root: by our user id, or because "root" is one of a user namespace, as under
 * rootless Podman. Daemons of the machine have no XDG_RUNTIME_DIR, and are spared the look at the map.
 */
function isRootless(sys: Sys): boolean {
  if (sys.env("XDG_RUNTIME_DIR") === undefined) return false;
  if (sys.euid !== 0) return true;
  try {
    return !/^\s*0\s+0\s+4294967295\s*$/.test(sys.readText("/proc/self/uid_map", 65_536));
  } catch (thrown) {
    if (thrown instanceof OsError) return false; // a kernel without user namespaces
    throw thrown;
  }
}
