import { openRegistry, type Registry } from "../cdi/registry.ts";
import { openIndex } from "../cdi/spec-index.ts";
import { BUILD } from "../sys/version.ts";
import type { Machine } from "./machine.ts";

export function openMachineRegistry(machine: Machine): Registry {
  if (machine.memory !== undefined) return machine.memory.registry(machine);
  const index = machine.cached ? openIndex(machine.sys, machine.stateDir, BUILD) : undefined;
  return openRegistry(machine.host, machine.specDirs, index);
}
