import type { FoundDevice, Registry } from "../cdi/registry.ts";
import type { Allocation } from "../policy/allocation.ts";
import { type AllocatedGrant, grantAllocated } from "../policy/grant-allocated.ts";
import type { Request } from "../request/request.ts";
import { isSameDevice, namesOf } from "./device-names.ts";
import { entitledHere, type MachinesEntitlement } from "./entitled.ts";
import type { Machine } from "./machine.ts";

/** What a container may have of what it asks for, and what was allocated to it at all. */
export type AllocatedHere = AllocatedGrant & Pick<MachinesEntitlement, "entitled" | "notUnderstood">;

/**
 * What an allocation of the kubelet's means for a request. A process that lives keeps it: the same GPUs are allocated
 * again and again, and asked for in the same words.
 */
export function allocatedHere(
  machine: Machine,
  registry: Registry,
  namespace: string,
  request: Request,
  allocation: Allocation,
): AllocatedHere {
  const { settings, host, memory } = machine;
  const state = memory && registry.state();
  // All that the answer rests on besides the settings.
  const key =
    memory === undefined || state === undefined
      ? undefined
      : `${state} ${memory.textOf(request)} ${memory.textOf(allocation)} ${namespace}`;
  const known = key === undefined ? undefined : memory?.judged(registry, settings, key);
  if (known !== undefined) return known;
  const { entitled, notUnderstood, isOfSpecs } = entitledHere(allocation, registry, host);
  let hasAll = true;
  const finder = {
    find(name: string): FoundDevice {
      let found: FoundDevice | undefined;
      try {
        found = registry.find(name);
        return found;
      } finally {
        // A spec that could not be read now may be read the next time.
        if (found === undefined) hasAll = false;
      }
    },
  };
  const granted = grantAllocated(request, settings, { namespace }, entitled, {
    namesOf: (name) => namesOf(finder, name),
    isSame: (one, other) => isSameDevice(finder, one, other),
  });
  const answer = { ...granted, entitled, notUnderstood };
  if (key !== undefined && isOfSpecs && hasAll) memory?.keepJudged(registry, settings, key, answer);
  return answer;
}
