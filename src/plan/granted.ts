import type { Registry } from "../cdi/registry.ts";
import { readDriverVersion } from "../host/driver-version.ts";
import { Look } from "../host/look.ts";
import type { Grant } from "../policy/grant.ts";
import type { Request } from "../request/request.ts";
import { checkRequirements } from "../request/requirements.ts";
import { planFromFreshSpecs } from "./fresh.ts";
import { KeptPlans } from "./kept-plans.ts";
import type { Machine } from "./machine.ts";
import { makePlan, type Plan } from "./plan.ts";
import { openMachineRegistry } from "./registry.ts";

/**
 * The plan for what was granted, from specs that are right.
 *
 * @param opened the registry of this moment, where one is open
 * @throws SluiceError E_CDI_*, E_REQUIREMENT
 */
export function planGranted(machine: Machine, request: Request, grant: Grant, opened?: Registry): Plan {
  const { sys, host, stateDir } = machine;
  if (request.requirements !== undefined) checkRequirements(request.requirements, readDriverVersion(new Look(host)));
  const kept = machine.memory ?? (machine.cached ? new KeptPlans(sys, stateDir) : undefined);
  let registry = opened;
  return planFromFreshSpecs(machine, grant, () => {
    const current = registry ?? openMachineRegistry(machine);
    registry = undefined; // made once more, it is made from specs that were written anew
    return makePlan(grant, current, host, sys.sha256, kept);
  });
}
