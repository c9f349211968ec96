import type { AllocatedClaim, AllocatedDevices, Allocation, Evidence } from "../policy/allocation.ts";
import { quote } from "../sys/error.ts";
import type { PodRecords, Unread } from "./checkpoint.ts";
import type { PodAnswer } from "./pod-resources.ts";

/** What was learnt of a pod at one time. */
export interface Learnt {
  readonly answer: PodAnswer;
  readonly records: PodRecords;
}

const NOTHING: Allocation = { devices: [], claims: [] };

/** Where the engine does not tell the pod's UID. */
export const WITHOUT_UID: PodRecords = {
  devices: { unread: "the pod's UID is not known", missing: false },
  claims: { unread: "the pod's UID is not known", missing: false },
};

/**
 * What a container of the pod may have, from what PodResources says of the pod's name and the records say of its UID.
 *
 * A container that PodResources lists has what both say; where the records cannot be read, what PodResources says. One
 * that it does not list is an init container (or was added for debugging, and has no devices of its own): it has the
 * devices that are recorded for it, and the claims of its pod, since only pod specs tell which container names a claim.
 * A claim is reserved for the pod as a whole, and whoever writes the pod may name it in any container.
 */
export function weigh(container: string, { answer, records }: Learnt): Evidence {
  const { method, pods } = answer;
  if (pods.length === 0) {
    return { from: `PodResources ${method}: the kubelet does not know the pod`, allocation: NOTHING };
  }
  const listed = pods.flatMap((pod) => pod.get(container) ?? []);
  return listed.length === 0 ? unlisted(container, records) : compared(container, listed, answer, records);
}

function unlisted(container: string, { devices, claims }: PodRecords): Evidence {
  if ("unread" in devices && !devices.missing) {
    return {
      unavailable: `PodResources leaves out init containers, as ${quote(container)} must be one, and ${devices.unread}`,
    };
  }
  return {
    from: "the kubelet's records for the pod's UID, since PodResources leaves out init containers",
    allocation: {
      devices: "unread" in devices ? [] : (devices.get(container) ?? []),
      claims: "unread" in claims ? [] : claims,
    },
    notes: [devices, claims].flatMap((records) => ("unread" in records ? [records.unread] : [])),
  };
}

function compared(
  container: string,
  listed: readonly Allocation[],
  { method, pods }: PodAnswer,
  records: PodRecords,
): Evidence {
  const notes: string[] = [];
  const devices = merged(listed.flatMap((allocation) => allocation.devices));
  const claims = listed.flatMap((allocation) => allocation.claims);
  const unread =
    (devices.length > 0 ? unreadOf(records.devices) : undefined) ??
    (claims.length > 0 ? unreadOf(records.claims) : undefined);
  if (unread !== undefined) {
    if (pods.length > 1) {
      return {
        unavailable: `PodResources lists ${pods.length} pods of this name, and ${unread}, which would tell them apart`,
      };
    }
    notes.push(`not compared with the pod's UID: ${unread}`);
  }
  return {
    from: `PodResources ${method}`,
    allocation: {
      devices: recordedDevices(container, devices, records.devices, notes),
      claims: recordedClaims(claims, records.claims, notes),
    },
    notes,
  };
}

function unreadOf(records: object | Unread): string | undefined {
  return "unread" in records ? records.unread : undefined;
}

/** Each resource once. */
function merged(devices: readonly AllocatedDevices[]): AllocatedDevices[] {
  const ids = new Map<string, Set<string>>();
  for (const device of devices) ids.set(device.resource, new Set([...(ids.get(device.resource) ?? []), ...device.ids]));
  return [...ids].map(([resource, set]) => ({ resource, ids: [...set] }));
}

/** Those that are recorded for this pod, with what their plugin answered. The others are an earlier pod's. */
function recordedDevices(
  container: string,
  devices: readonly AllocatedDevices[],
  records: PodRecords["devices"],
  notes: string[],
): readonly AllocatedDevices[] {
  if ("unread" in records) return devices;
  const recorded = records.get(container) ?? [];
  return devices.flatMap(({ resource, ids }) => {
    const record = recorded.find((entry) => entry.resource === resource);
    const kept = ids.filter((id) => record?.ids.includes(id));
    for (const id of ids) if (!kept.includes(id)) notes.push(notRecorded(`${quote(resource)} id ${quote(id)}`));
    if (record === undefined || kept.length === 0) return [];
    // The answer is for all recorded ids together.
    const isWhole = kept.length === record.ids.length && record.answer !== undefined;
    return [{ resource, ids: kept, ...(isWhole ? { answer: record.answer } : {}) }];
  });
}

/**
 * Those that are recorded for this pod, as far as their CDI devices are: drivers name these after the claim's UID, so
 * they tell a claim from an earlier one of its name. What else is told of a device was not in all versions.
 */
function recordedClaims(
  claims: readonly AllocatedClaim[],
  records: PodRecords["claims"],
  notes: string[],
): readonly AllocatedClaim[] {
  if ("unread" in records) return claims;
  return claims.flatMap((claim) => {
    const recorded = records.filter(({ namespace, name }) => namespace === claim.namespace && name === claim.name);
    const title = `claim ${quote(`${claim.namespace}/${claim.name}`)}`;
    if (recorded.length === 0) {
      notes.push(notRecorded(title));
      return [];
    }
    const cdiDevices = claim.cdiDevices.filter((device) => {
      const isRecorded = recorded.some((record) => record.cdiDevices.includes(device));
      if (!isRecorded) notes.push(notRecorded(`${quote(device)} of ${title}`));
      return isRecorded;
    });
    return [{ ...claim, cdiDevices }];
  });
}

function notRecorded(what: string): string {
  return `left out ${what}: the kubelet has not recorded it for this pod's UID, but for an earlier pod of this name`;
}
