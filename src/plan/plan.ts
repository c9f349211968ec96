import { collectEdits, resolveDeviceNodes } from "../cdi/edits.ts";
import type { Registry } from "../cdi/registry.ts";
import type { ContainerEdits } from "../cdi/spec.ts";
import { type Origin, readOrigin } from "../host/origin.ts";
import type { ReadyEdits } from "../oci/ready-edits.ts";
import type { Grant } from "../policy/grant.ts";
import { SluiceError } from "../sys/error.ts";
import type { Files, Sys } from "../sys/sys.ts";
import { forCapabilities } from "./capabilities.ts";

/** CDI edits that belong together, with the reason why they are made and where they come from. */
export interface PlannedEdit {
  /** For a person. */
  readonly reason: string;
  readonly source: {
    /** The CDI spec file. */
    readonly spec: string;
    /** The device that the edits belong to; absent for those that all devices of the spec share. */
    readonly device?: string;
  };
  /** Device nodes are resolved: type, numbers and mode stand in them. */
  readonly edits: ContainerEdits;
}

export interface PlannedDevice {
  /** `vendor/class=name` */
  readonly name: string;
  /** Where it was asked for. */
  readonly from: string;
  /** Why it was granted. */
  readonly grant: string;
}

/** What a container gets, in the order in which it is applied. The same inputs give the same plan, byte for byte. */
export interface Plan {
  /** SHA-256 of `text`. */
  readonly digest: string;
  readonly devices: readonly PlannedDevice[];
  readonly edits: readonly PlannedEdit[];
  /** `devices` and `edits` as JSON: `{"devices":[...],"edits":[...]}`. */
  readonly text: string;
  /** The spec files that it is made from. */
  readonly specs: readonly string[];
  /** The edits once more, ready to be written, where an earlier start has made the plan. */
  readonly ready?: ReadyEdits;
}

/** Plans that were made before. */
export interface PlanStore {
  /** @throws SluiceError E_CDI_DEVICE_NODE where a node of the plan cannot be had any more */
  find(grant: Grant, state: string, host: Files): Plan | undefined;
  /**
   * @param state of the spec files, under which the plan would be made again (`Registry.state`)
   * @param unresolved the edits of the plan with their device nodes as the spec has them
   */
  keep(grant: Grant, state: string, plan: Plan, unresolved: readonly ContainerEdits[]): void;
}

/**
 * Makes the plan for what was granted: looks the devices up, resolves their nodes, gives each edit its reason.
 * Reads files through `registry` and `host`, changes nothing. All or nothing: one device that cannot be had fails it.
 *
 * @param kept plans that earlier starts have made, so that it need not be made again
 * @throws SluiceError E_CDI_*
 */
export function makePlan(grant: Grant, registry: Registry, host: Files, sha256: Sys["sha256"], kept?: PlanStore): Plan {
  const state = kept && registry.state();
  const known = state === undefined ? undefined : kept?.find(grant, state, host);
  if (known !== undefined) return known;
  const found = grant.devices.map((device) => registry.find(device.name));
  const fromOf = new Map(grant.devices.map((device) => [device.name, device.from]));
  const edits: PlannedEdit[] = [];
  const unresolved: ContainerEdits[] = [];
  const narrow = narrowing(grant, host);
  for (const { kind, from } of grant.driver) {
    const specs = registry.specsOfKind(kind);
    if (specs.length === 0) {
      throw new SluiceError(
        "E_CDI_UNKNOWN_DEVICE",
        `no CDI spec has devices of the kind ${kind}, whose driver files ${from} asks for`,
        "install its CDI spec, or unset what asks for it",
      );
    }
    for (const { path, spec } of specs) {
      if (spec.containerEdits === undefined) continue;
      const own = narrow(path, spec.containerEdits);
      const reason = `driver files of ${kind} without a device, asked for by ${from}${own.note}`;
      edits.push({ reason, source: { spec: path }, edits: resolved(own.edits, host) });
      unresolved.push(own.edits);
    }
  }
  for (const { edits: all, source } of collectEdits(found)) {
    const { edits: own, note } = narrow(source.path, all);
    const name = `${source.kind}=${source.device}`;
    const reason =
      source.device === undefined
        ? `common edits of ${source.kind}, which its devices need`
        : `device ${name}, asked for by ${fromOf.get(name)}`;
    edits.push({
      reason: reason + note,
      source: { spec: source.path, ...(source.device === undefined ? {} : { device: source.device }) },
      edits: resolved(own, host),
    });
    unresolved.push(own);
  }
  const text = JSON.stringify({ devices: grant.devices, edits });
  const specs = [...new Set(edits.map(({ source }) => source.spec))];
  const plan = { digest: sha256(text), devices: grant.devices, edits, text, specs };
  if (state !== undefined) kept?.keep(grant, state, plan, unresolved);
  return plan;
}

/**
 * What of a spec's edits belongs to the driver's capabilities that were granted, and a note for the reason, where that
 * is less than all. Only specs of our own say what belongs to which; others are given whole.
 */
function narrowing(
  { capabilities }: Grant,
  host: Files,
): (spec: string, edits: ContainerEdits) => { readonly edits: ContainerEdits; readonly note: string } {
  if (capabilities === undefined) return (_, edits) => ({ edits, note: "" });
  const wanted = new Set(capabilities.names);
  const tags = new Map<string, Origin["capabilities"]>();
  return (spec, all) => {
    const known = tags.get(spec) ?? readOrigin(host, spec)?.capabilities ?? {};
    tags.set(spec, known);
    const { edits, without } = forCapabilities(all, known, wanted);
    return { edits, note: without.length === 0 ? "" : `, without ${without.join(", ")} (${capabilities.from})` };
  };
}

function resolved(edits: ContainerEdits, host: Files): ContainerEdits {
  return edits.deviceNodes === undefined
    ? edits
    : { ...edits, deviceNodes: resolveDeviceNodes(edits.deviceNodes, host) };
}
