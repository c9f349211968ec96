/** Exit codes of every command (DESIGN.md section 5); 70 is sysexits' EX_SOFTWARE, a defect of ours. */
export const EXIT = { done: 0, failed: 1, usage: 2, internal: 70 } as const;
