/** As runc and crun take container ids, and safe as a file name. */
const ID = /^[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,200}$/;

/** Where a container's receipt is; `undefined` for an id that can have none. */
export function receiptPath(stateDir: string, id: string): string | undefined {
  return ID.test(id) ? `${stateDir}/receipts/${id}.json` : undefined;
}
