const DAY = 86_400_000;
/** What is written of a day is written of the next moment, too. */
let today = { day: Number.NaN, date: "" };

/** Milliseconds since the epoch as RFC 3339 in UTC: `2026-01-31T12:00:00.000Z`. The engine has no Date. */
export function rfc3339(ms: number): string {
  const day = Math.floor(ms / DAY);
  if (today.day !== day) today = { day, date: dateOf(day) };
  const rest = ms - day * DAY;
  const clock = `${pad(rest / 3_600_000)}:${pad((rest / 60_000) % 60)}:${pad((rest / 1000) % 60)}.${pad(rest % 1000, 3)}`;
  return `${today.date}T${clock}Z`;
}

function pad(n: number, width = 2): string {
  return String(Math.floor(n)).padStart(width, "0");
}

/** @param days since the epoch */
function dateOf(days: number): string {
  // Howard Hinnant's days-to-civil: years start in March, so that the leap day is the last of its year.
  const shifted = days + 719_468;
  const era = Math.floor(shifted / 146_097);
  const dayOfEra = shifted - era * 146_097;
  const yearOfEra = Math.floor(
    (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) - Math.floor(dayOfEra / 146_096)) / 365,
  );
  const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const marchMonth = Math.floor((5 * dayOfYear + 2) / 153);
  const day = dayOfYear - Math.floor((153 * marchMonth + 2) / 5) + 1;
  const month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  return `${pad(year, 4)}-${pad(month)}-${pad(day)}`;
}
