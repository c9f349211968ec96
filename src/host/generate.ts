import { OsError } from "../sys/error.ts";
import type { Sys } from "../sys/sys.ts";
import { type Made, makeSpecs } from "./cdi-spec.ts";
import type { Host } from "./host.ts";
import type { SpecOptions } from "./origin.ts";

/** Milliseconds. Without its persistence daemon the driver wakes up every GPU first. */
const PATIENCE = 30_000;
/** Bytes of what `nvidia-smi -L` prints. */
const LIMIT = 256 << 10;

/**
 * The specs of this very machine. Where it has MIG devices, `nvidia-smi -L` is asked for their UUIDs, which no file
 * tells; where it is not there or fails, they have no names but their numbers, and a notice says so.
 */
export function makeMachineSpecs(sys: Sys, options: SpecOptions): Made {
  const made = makeSpecs(sys, options);
  const count = made.host.nvidia.gpus.reduce((sum, gpu) => sum + (gpu.mig?.length ?? 0), 0);
  if (count === 0) return made;
  const smi = askSmi(sys, made.host);
  const full = smi === undefined ? made : makeSpecs(sys, options, smi);
  const named = full.host.nvidia.gpus.flatMap((gpu) => gpu.mig ?? []).filter((mig) => mig.uuid !== undefined).length;
  if (named >= count) return full;
  const what = smi === undefined ? "nvidia-smi is not there, or failed" : "nvidia-smi does not know all of them";
  return { ...full, notices: [...full.notices, `${what}: ${count - named} MIG devices have no names by UUID`] };
}

function askSmi(sys: Sys, host: Host): string | undefined {
  const program = host.nvidia.driver?.files.find((file) => file.path.endsWith("/nvidia-smi"))?.path;
  if (program === undefined) return undefined;
  try {
    const { code, out } = sys.capture(program, ["-L"], ["LC_ALL=C"], LIMIT, PATIENCE);
    return code === 0 ? out : undefined;
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
}
