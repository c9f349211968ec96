/**
 * The command line of an OCI runtime, as engines call runc and crun. It is looked at before every call, pass-through
 * ones too, so it stops at the command where the rest is of no interest.
 */

export interface CommandLine {
  /** `create`, `state`, ...; absent for `--version` and the like. */
  command?: string;
  /** The options below, and `id`, of the commands that Sluice acts on: create, run, restore and delete. */
  bundle?: string;
  /** crun's `--config`/`-f`: a file to use in place of the bundle's config.json. */
  config?: string;
  id?: string;
  root?: string;
  log?: string;
  logFormat?: string;
  /** The call only asks for the runtime's own help. */
  help?: boolean;
  /** The container is still there when the call returns: `run` with `--detach` or `--keep`. */
  lasting?: boolean;
}

/**
 * The flags that take the next argument as their value, of runc (1.0 to 1.5) and crun (to 1.28), global ones and those
 * of create, run, restore and delete; but for `-f`, which has a value in some commands only.
 */
const TAKES_VALUE =
  /^(?:root|log|log-format|log-level|criu|rootless|cgroup-manager|b|bundle|config|console-socket|pidfd-socket|pid-file|preserve-fds|image-path|work-path|parent-path|manage-cgroups-mode|network-lock|empty-ns|lsm-profile|lsm-mount-context)$/;

const ACTED_ON = /^(?:create|run|restore|delete)$/;

/**
 * `args` without `argv[0]`. Flags are taken in all forms: `--name value`, `--name=value`, one dash in place of two (Go),
 * before and after the id, and crun's `-bVALUE`. A flag given twice counts the last time. Unknown flags are taken to have no value. Of several arguments the
 * last one is the id: these commands take just one, and the others are values of flags unknown here.
 */
export function parseCommandLine(args: readonly string[]): CommandLine {
  const line: CommandLine = {};
  let flags = true;
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] as string;
    if (!flags || !arg.startsWith("-") || arg === "-") {
      if (line.command !== undefined) {
        line.id = arg;
      } else {
        line.command = arg;
        if (!ACTED_ON.test(arg)) return line;
        flags = true;
      }
      continue;
    }
    if (arg === "--") {
      flags = false;
      continue;
    }
    const single = !arg.startsWith("--");
    const equals = arg.indexOf("=");
    let name = arg.slice(single ? 1 : 2, equals < 0 ? undefined : equals);
    let value = equals < 0 ? undefined : arg.slice(equals + 1);
    // crun's --config; for delete it is --force.
    const hasConfig = line.command === "create" || line.command === "run";
    if (single && name.length > 1 && name !== "bundle" && (name[0] === "b" || (name[0] === "f" && hasConfig))) {
      name = arg.slice(1, 2);
      value = arg.slice(2);
    } else if (value === undefined && (TAKES_VALUE.test(name) || (name === "f" && hasConfig))) {
      value = args[++i];
    }
    if (value === undefined && (name === "h" || name === "help")) line.help = true;
    if (value !== "false" && /^(?:d|detach|keep)$/.test(name)) line.lasting = true;
    if (value === undefined) continue;
    if (name === "bundle" || name === "b") line.bundle = value;
    else if (name === "root") line.root = value;
    else if (name === "log") line.log = value;
    else if (name === "log-format") line.logFormat = value;
    else if (hasConfig && (name === "f" || name === "config")) line.config = value;
  }
  return line;
}
