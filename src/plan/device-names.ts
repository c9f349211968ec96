import type { Registry } from "../cdi/registry.ts";
import type { ContainerEdits } from "../cdi/spec.ts";
import type { DeviceNames } from "../policy/rules.ts";
import { SluiceError } from "../sys/error.ts";

/*
 * Which names mean one device. A GPU has several, an index and a UUID among them; the kubelet knows it by one, and a
 * container asks for it by another. Two names of one kind mean the same where they give the same device nodes.
 */

type Finder = Pick<Registry, "find">;

/**
 * The names of the same device in its spec, the given one among them, and those of what it holds besides: `all` has every
 * GPU. The given name alone where no good spec has it.
 */
export function namesOf(registry: Finder, name: string): DeviceNames {
  const found = find(registry, name);
  const own = found && nodesOf(found.device.containerEdits);
  if (found === undefined || own === undefined) return { names: [name], parts: [] };
  const names: string[] = [];
  const parts: string[] = [];
  for (const other of found.spec.devices) {
    const nodes = nodesOf(other.containerEdits);
    if (nodes === undefined || ![...nodes].every((node) => own.has(node))) continue;
    (nodes.size === own.size ? names : parts).push(`${found.spec.kind}=${other.name}`);
  }
  return { names, parts };
}

/** Whether two names mean the same device, also where they are of two kinds. */
export function isSameDevice(registry: Finder, one: string, other: string): boolean {
  if (one === other) return true;
  const [a, b] = [find(registry, one), find(registry, other)].map(
    (found) => found && nodesOf(found.device.containerEdits),
  );
  return a !== undefined && b !== undefined && a.size === b.size && [...a].every((node) => b.has(node));
}

/** @returns `undefined` also where its spec is wrong: whoever needs the device itself is told */
function find(registry: Finder, name: string): ReturnType<Registry["find"]> | undefined {
  try {
    return registry.find(name);
  } catch (thrown) {
    if (thrown instanceof SluiceError) return undefined;
    throw thrown;
  }
}

/** What tells a device's own nodes from another's; `undefined` where it has none. */
function nodesOf({ deviceNodes = [] }: ContainerEdits): ReadonlySet<string> | undefined {
  if (deviceNodes.length === 0) return undefined;
  return new Set(deviceNodes.map((node) => `${node.hostPath ?? node.path} ${node.major ?? ""}:${node.minor ?? ""}`));
}
