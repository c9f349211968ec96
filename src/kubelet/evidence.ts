import type { Evidence, PodContainer } from "../policy/allocation.ts";
import { makeRoom } from "../sys/bounded.ts";
import { reasonOf } from "../sys/error.ts";
import type { PodRecords } from "./checkpoint.ts";
import { type Clock, systemClock } from "./clock.ts";
import type { PodResources } from "./pod-resources.ts";
import { type Learnt, WITHOUT_UID, weigh } from "./weigh.ts";

/** Milliseconds for the question that is asked ahead. */
const AHEAD = 2000;
/** Sandboxes that are remembered. A forgotten one is asked for anew. */
const MAX_SANDBOXES = 4096;

/** Different things said of containers that are remembered as one object each, and characters of each. */
const MAX_SAID = 128;
const LONGEST_SAID = 4096;

/** A pod, as an engine names it. */
export type Pod = Omit<PodContainer, "container">;

export interface EvidenceSources {
  readonly podResources: PodResources;
  readonly records: { of(uid: string): PodRecords };
}

/** All of its fields are there from the start: there may be thousands, and this is how they are small. */
interface Sandbox {
  readonly pod: Pod;
  /** The last answer. An allocation never shrinks or moves while its pod lives. */
  learnt: Learnt | undefined;
  /** What the answer means for each container that it lists, found out before it waits for it; taken out by then. */
  weighed: Map<string, Evidence> | undefined;
  /** A question that is under way; never rejected. */
  asking: Promise<Learnt | Error> | undefined;
}

/**
 * What the kubelet allocated, remembered for each pod sandbox, so that a container's start seldom waits for it. The
 * kubelet allocates for all of a pod's containers when it admits the pod, before it has the sandbox created; their
 * restarts keep what they had. Only after the machine has started anew may it allocate later, just before a container.
 *
 * So what is remembered may lack something, and is never too much: it is asked for again before anybody is refused.
 */
export class EvidenceCache {
  readonly #sources: EvidenceSources;
  readonly #clock: Clock;
  /** In the order in which they came. */
  readonly #sandboxes = new Map<string, Sandbox>();
  /** The same devices are allocated again and again. What is the same is one object, which is also understood once. */
  readonly #said = new Map<string, Evidence>();

  constructor(sources: EvidenceSources, clock: Clock = systemClock) {
    this.#sources = sources;
    this.#clock = clock;
  }

  /** Asks for a pod whose sandbox comes into being, ahead of its containers. Does not wait, and never throws. */
  begin(sandboxId: string, pod: Pod): void {
    const sandbox = this.#sandboxOf(sandboxId, pod);
    if (sandbox.asking === undefined) void this.#ask(sandbox, AHEAD);
  }

  /** What is already known to be allocated to the container; `undefined` where nothing is, and `of` has to be asked. */
  known(sandboxId: string, container: PodContainer): Evidence | undefined {
    const sandbox = this.#sandboxes.get(sandboxId);
    if (sandbox?.learnt === undefined || !isSame(sandbox.pod, container)) return undefined;
    const name = container.container;
    const evidence = sandbox.weighed?.get(name) ?? this.#weigh(name, sandbox.learnt);
    if (sandbox.weighed?.delete(name) && sandbox.weighed.size === 0) sandbox.weighed = undefined;
    return hasSomething(evidence) ? evidence : undefined;
  }

  /**
   * What the kubelet allocated to the container. Never rejected: a kubelet that does not answer within `timeout`
   * milliseconds gives `unavailable`, and is asked anew the next time.
   *
   * @param options.again do not rely on what is remembered: what the container asks for is more than that
   */
  async of(
    sandboxId: string,
    container: PodContainer,
    timeout: number,
    options: { readonly again?: boolean } = {},
  ): Promise<Evidence> {
    if (!options.again) {
      const known = this.known(sandboxId, container);
      if (known !== undefined) return known;
    }
    const deadline = this.#clock.now() + timeout;
    const sandbox = this.#sandboxOf(sandboxId, container);
    let left = timeout;
    // One that is under way may have been asked too early. If it fails or has nothing, there is another.
    if (sandbox.asking !== undefined) {
      const learnt = await this.#within(sandbox.asking, timeout);
      const evidence = learnt instanceof Error ? undefined : this.#weigh(container.container, learnt);
      if (!options.again && evidence !== undefined && hasSomething(evidence)) return evidence;
      left = Math.ceil(deadline - this.#clock.now());
    }
    if (left <= 0) return { unavailable: `the kubelet did not answer within ${timeout} ms` };
    const learnt = await this.#within(sandbox.asking ?? this.#ask(sandbox, left), left);
    return learnt instanceof Error ? { unavailable: learnt.message } : this.#weigh(container.container, learnt);
  }

  /** The sandbox is gone. */
  forget(sandboxId: string): void {
    this.#sandboxes.delete(sandboxId);
  }

  /** How many sandboxes are remembered. */
  get size(): number {
    return this.#sandboxes.size;
  }

  #sandboxOf(sandboxId: string, pod: Pod): Sandbox {
    const known = this.#sandboxes.get(sandboxId);
    if (known !== undefined && isSame(known.pod, pod)) return known;
    const { namespace, pod: name, uid } = pod;
    const own = { namespace, pod: name, ...(uid === undefined ? {} : { uid }) };
    const sandbox: Sandbox = { pod: own, learnt: undefined, weighed: undefined, asking: undefined };
    this.#sandboxes.delete(sandboxId);
    makeRoom(this.#sandboxes, MAX_SANDBOXES);
    this.#sandboxes.set(sandboxId, sandbox);
    return sandbox;
  }

  #ask(sandbox: Sandbox, timeout: number): Promise<Learnt | Error> {
    const { pod } = sandbox;
    const asking = this.#sources.podResources
      .ask(pod, timeout)
      .then((answer): Learnt => {
        // After the answer: what the kubelet told of has been recorded by then.
        const records = pod.uid === undefined ? WITHOUT_UID : this.#sources.records.of(pod.uid);
        const learnt = { answer, records };
        sandbox.learnt = learnt;
        const names = answer.pods.flatMap((one) => [...one.keys()]);
        sandbox.weighed = new Map(names.map((name) => [name, this.#weigh(name, learnt)]));
        return learnt;
      })
      .catch((error: unknown) => (error instanceof Error ? error : new Error(reasonOf(error))))
      .finally(() => {
        sandbox.asking = undefined;
      });
    sandbox.asking = asking;
    return asking;
  }

  #weigh(container: string, learnt: Learnt): Evidence {
    const evidence = weigh(container, learnt);
    const text = JSON.stringify(evidence);
    const same = this.#said.get(text);
    if (same !== undefined || text.length > LONGEST_SAID) return same ?? evidence;
    makeRoom(this.#said, MAX_SAID);
    this.#said.set(text, evidence);
    return evidence;
  }

  #within(asking: Promise<Learnt | Error>, timeout: number): Promise<Learnt | Error> {
    return new Promise((resolve) => {
      const cancel = this.#clock.after(timeout, () =>
        resolve(new Error(`the kubelet did not answer within ${timeout} ms`)),
      );
      void asking.then((learnt) => {
        cancel();
        resolve(learnt);
      });
    });
  }
}

function isSame(a: Pod, b: Pod): boolean {
  return a.namespace === b.namespace && a.pod === b.pod && a.uid === b.uid;
}

function hasSomething(evidence: Evidence): boolean {
  return "allocation" in evidence && (evidence.allocation.devices.length > 0 || evidence.allocation.claims.length > 0);
}
