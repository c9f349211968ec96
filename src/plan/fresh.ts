import { staleSpecs } from "../host/stale.ts";
import type { Grant } from "../policy/grant.ts";
import { SluiceError } from "../sys/error.ts";
import type { Machine } from "./machine.ts";
import type { Plan } from "./plan.ts";
import { planAfterFailure, planAnew } from "./refresh.part.ts";

/** What specs that are no longer right make of a request: its device is in none, or is no longer there. */
const BY_STALE_SPECS = /^E_CDI_(?:UNKNOWN_DEVICE|DEVICE_NODE|READ)$/;

/**
 * A plan from specs that are still right. A driver that was upgraded, or a GPU that was lost, makes a spec of ours wrong
 * without anybody touching it. So each start looks at the facts that the specs of its plan were made from, which takes
 * less than a millisecond. Only where one has changed, the machine is read anew, and the spec written anew.
 *
 * @param make gives the plan from the specs as they are on disk
 * @throws SluiceError E_CDI_STALE where a spec is wrong for what was asked and cannot be put right; or what `make` throws
 */
export function planFromFreshSpecs(machine: Machine, grant: Grant, make: () => Plan): Plan {
  let plan: Plan;
  try {
    plan = make();
  } catch (thrown) {
    if (!(thrown instanceof SluiceError) || !BY_STALE_SPECS.test(thrown.code)) throw thrown;
    return planAfterFailure(machine, grant, make, thrown);
  }
  const stale = staleSpecs(machine.host, plan.specs);
  return stale.length === 0 ? plan : planAnew(machine, grant, make, stale, plan);
}
