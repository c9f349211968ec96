import type { Machine } from "../plan/machine.ts";
import { Memory } from "../plan/memory.ts";
import { OsError } from "../sys/error.ts";
import type { Log } from "./logs.ts";

/**
 * The machine with the settings that hold now: the file is read again once it has changed. One that is broken changes
 * nothing, since a mistake in it must not stop the pods of a whole node.
 *
 * @param open reads the settings; @throws SluiceError E_CONFIG_*, the first time only
 */
export function liveMachine(open: () => Machine, log: Log): () => Machine {
  const memory = new Memory();
  let machine: Machine = { ...open(), memory };
  let stamp = stampOf(machine);
  return () => {
    const now = stampOf(machine);
    if (now === stamp) return machine;
    stamp = now;
    try {
      machine = { ...open(), memory };
      log.info({ file: machine.settingsFile }, "settings read again");
    } catch (thrown) {
      log.error({ err: thrown }, "the settings stay as they were");
    }
    return machine;
  };
}

function stampOf({ sys, settingsFile }: Machine): string {
  try {
    return sys.stat(settingsFile)?.stamp ?? "";
  } catch (thrown) {
    if (thrown instanceof OsError) return thrown.code;
    throw thrown;
  }
}
