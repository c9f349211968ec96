import type { EvidenceSource } from "../nri/door.ts";
import type { Evidence } from "../policy/allocation.ts";
import type { Metrics } from "./metrics.ts";

/** The same evidence, with the time that each answer takes told to the metrics. */
export function measured(source: EvidenceSource, metrics: Metrics): EvidenceSource {
  return {
    begin: (sandbox, pod) => source.begin(sandbox, pod),
    forget: (sandbox) => source.forget(sandbox),
    known(sandbox, container): Evidence | undefined {
      const evidence = source.known(sandbox, container);
      if (evidence !== undefined) metrics.evidence("remembered", 0);
      return evidence;
    },
    async of(sandbox, container, timeout, options): Promise<Evidence> {
      const start = performance.now();
      const evidence = await source.of(sandbox, container, timeout, options);
      metrics.evidence("unavailable" in evidence ? "unavailable" : "asked", (performance.now() - start) / 1000);
      return evidence;
    },
  };
}
