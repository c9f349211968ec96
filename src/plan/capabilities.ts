import type { ContainerEdits } from "../cdi/spec.ts";
import type { Capability } from "../host/driver.ts";
import type { Origin } from "../host/origin.ts";

/** Edits without what belongs to capabilities that are not wanted. */
export interface Narrowed {
  readonly edits: ContainerEdits;
  /** The capabilities for which something was left out, in the order of the alphabet. */
  readonly without: readonly Capability[];
}

/**
 * Leaves out the mounts and the device nodes of which every capability that they belong to is one that nobody wants.
 * What belongs to none stays, and so do all other edits. Changes nothing of what it is given.
 *
 * @param tags of each capability the paths in the container that belong to it
 */
export function forCapabilities(
  edits: ContainerEdits,
  tags: Origin["capabilities"],
  wanted: ReadonlySet<Capability>,
): Narrowed {
  /** Of each path that belongs to a capability: whether one that is wanted is among them. */
  const given = new Map<string, boolean>();
  for (const [capability, paths] of tagged(tags)) {
    const isWanted = wanted.has(capability);
    for (const path of paths) given.set(path, isWanted || given.get(path) === true);
  }
  const isGiven = (path: string) => given.get(path) !== false;
  const { deviceNodes, mounts, ...rest } = edits;
  const nodesLeft = deviceNodes?.filter((node) => isGiven(node.path));
  const mountsLeft = mounts?.filter((mount) => isGiven(mount.containerPath));
  const paths = new Set([...(deviceNodes ?? []).map((n) => n.path), ...(mounts ?? []).map((m) => m.containerPath)]);
  return {
    edits: {
      ...rest,
      ...(nodesLeft === undefined ? {} : { deviceNodes: nodesLeft }),
      ...(mountsLeft === undefined ? {} : { mounts: mountsLeft }),
    },
    without: tagged(tags)
      .filter(([, ofIt]) => ofIt.some((path) => !isGiven(path) && paths.has(path)))
      .map(([capability]) => capability)
      .sort(),
  };
}

function tagged(tags: Origin["capabilities"]): [Capability, readonly string[]][] {
  return Object.entries(tags) as [Capability, readonly string[]][];
}
