//! What a pool's schedule comes to at a time. Pure: the time is given.

use std::cmp::Ordering;

use croner::Cron;
use croner::errors::CronError;
use croner::time::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use hearth_api::schedule::PoolSchedule;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ZonedDateTime, civil};

/// A schedule that was understood.
#[derive(Debug, Clone)]
pub struct Schedule {
    zone: TimeZone,
    windows: Vec<Window>,
}

#[derive(Debug, Clone)]
struct Window {
    start: Cron,
    end: Cron,
    target_size: i64,
}

/// What holds at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InForce {
    /// So many VMs are kept ready.
    pub target_size: i64,
    /// Until then nothing changes; `None` when nothing ever does.
    pub until: Option<Timestamp>,
}

/// Why a schedule is not understood.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// There is no such time zone here.
    #[error("the time zone {0} is not known on this server")]
    TimeZone(String),
    /// A text is no time that comes again.
    #[error("`{text}` is no time in cron's five fields: {fault}")]
    Cron {
        /// Which window, from 0.
        window: usize,
        /// `start` or `end`.
        field: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        fault: CronError,
    },
}

impl Schedule {
    /// # Errors
    /// For an unknown time zone, and a text that is no time.
    pub fn parse(schedule: &PoolSchedule) -> Result<Self, ScheduleError> {
        let zone = TimeZone::get(&schedule.time_zone);
        let zone = zone.map_err(|_| ScheduleError::TimeZone(schedule.time_zone.to_string()))?;
        let windows = schedule.windows.iter().enumerate().map(|(at, window)| {
            let cron = |field, text: &str| {
                text.parse::<Cron>().map_err(|fault| ScheduleError::Cron {
                    window: at,
                    field,
                    text: text.to_owned(),
                    fault,
                })
            };
            Ok(Window {
                start: cron("start", &window.start)?,
                end: cron("end", &window.end)?,
                target_size: window.target_size,
            })
        });
        Ok(Self {
            zone,
            windows: windows.collect::<Result<_, _>>()?,
        })
    }

    /// `own`: what the pool keeps outside of every window.
    #[must_use]
    pub fn in_force(&self, own: i64, now: Timestamp) -> InForce {
        let local = LocalTime(now.to_zoned_datetime(self.zone.clone()));
        let open = self.windows.iter().filter(|window| window.is_open(&local));
        let changes = self.windows.iter().flat_map(|window| [&window.start, &window.end]);
        // A time that never comes, as 30 February, is no change.
        let changes = changes.filter_map(|cron| cron.find_next_occurrence(&local, false).ok());
        InForce {
            target_size: open.map(|window| window.target_size).max().unwrap_or(own),
            until: changes.map(|time| time.0.timestamp()).min(),
        }
    }
}

impl Window {
    /// Whether it began later than it ended.
    fn is_open(&self, now: &LocalTime) -> bool {
        let last = |cron: &Cron| cron.find_previous_occurrence(now, true).ok();
        match (last(&self.start), last(&self.end)) {
            (Some(start), Some(end)) => start.cmp_instant(&end) == Ordering::Greater,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

/// A time in a time zone, for `croner`, which knows another version of `jiff`.
#[derive(Debug, Clone)]
struct LocalTime(ZonedDateTime);

impl CronDateTime for LocalTime {
    fn to_civil(&self) -> CivilDateTime {
        let time = self.0.datetime();
        let part = |part: i8| u32::try_from(part).unwrap_or_default();
        let date = CivilDate::from_ymd_opt(time.year().into(), part(time.month()), part(time.day()));
        let clock = CivilTime::from_hms_opt(part(time.hour()), part(time.minute()), part(time.second()));
        match (date, clock) {
            (Some(date), Some(clock)) => CivilDateTime::new(date, clock),
            // The parts of a date that exists are a date that exists.
            _ => unreachable!("{time}"),
        }
    }

    fn civil_weekday(&self) -> Weekday {
        let days = self.0.weekday().to_sunday_zero_offset();
        Weekday::from_days_from_sunday(u32::try_from(days).unwrap_or_default())
    }

    fn resolve_civil(&self, time: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let part = |part: u32| i8::try_from(part).map_err(|_| CronError::InvalidTime);
        let time = civil::DateTime::new(
            i16::try_from(time.year()).map_err(|_| CronError::InvalidDate)?,
            part(time.month())?,
            part(time.day())?,
            part(time.hour())?,
            part(time.minute())?,
            part(time.second())?,
            0,
        )
        .map_err(|_| CronError::InvalidDate)?;
        let found = self.0.time_zone().to_ambiguous_zoned_datetime(time);
        let here = |zoned: Result<ZonedDateTime, jiff::Error>| zoned.map(Self).map_err(|_| CronError::InvalidTime);
        Ok(match found.offset() {
            AmbiguousOffset::Unambiguous { .. } => Resolution::Single(here(found.unambiguous())?),
            AmbiguousOffset::Fold { .. } => Resolution::Ambiguous(here(found.clone().earlier())?, here(found.later())?),
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(SignedDuration::from_secs(seconds)).ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.timestamp().cmp(&other.0.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use hearth_api::schedule::ScheduleWindow;

    use super::*;

    fn schedule(zone: &str, windows: &[(&str, &str, i64)]) -> Schedule {
        let windows = windows.iter().map(|(start, end, target_size)| ScheduleWindow {
            start: (*start).to_owned().try_into().unwrap(),
            end: (*end).to_owned().try_into().unwrap(),
            target_size: *target_size,
        });
        Schedule::parse(&PoolSchedule {
            time_zone: zone.to_owned().try_into().unwrap(),
            windows: windows.collect(),
        })
        .unwrap()
    }

    fn at(schedule: &Schedule, time: &str) -> (i64, Option<String>) {
        let found = schedule.in_force(2, time.parse().unwrap());
        (found.target_size, found.until.map(|until| until.to_string()))
    }

    #[test]
    fn a_window_holds_from_its_start_to_its_end_in_its_time_zone() {
        let days = schedule("Europe/Berlin", &[("0 8 * * 1-5", "0 18 * * 1-5", 8)]);
        // A Friday in winter: 8:00 there is 7:00 UTC.
        assert_eq!(
            at(&days, "2026-11-27T06:59:59Z"),
            (2, Some("2026-11-27T07:00:00Z".into()))
        );
        assert_eq!(
            at(&days, "2026-11-27T07:00:00Z"),
            (8, Some("2026-11-27T17:00:00Z".into()))
        );
        assert_eq!(
            at(&days, "2026-11-27T17:00:00Z"),
            (2, Some("2026-11-30T07:00:00Z".into()))
        );
        // A Sunday.
        assert_eq!(at(&days, "2026-11-29T12:00:00Z").0, 2);
        // In summer it is one hour earlier.
        assert_eq!(at(&days, "2026-07-03T06:00:00Z").0, 8);
    }

    #[test]
    fn a_window_over_midnight_and_one_that_overlaps() {
        let nights = schedule("UTC", &[("0 22 * * *", "0 6 * * *", 0), ("0 5 * * *", "0 7 * * *", 5)]);
        assert_eq!(at(&nights, "2026-11-27T23:30:00Z").0, 0);
        assert_eq!(at(&nights, "2026-11-28T04:59:59Z").0, 0);
        assert_eq!(at(&nights, "2026-11-28T05:30:00Z").0, 5);
        assert_eq!(at(&nights, "2026-11-28T06:30:00Z").0, 5);
        assert_eq!(
            at(&nights, "2026-11-28T07:00:00Z"),
            (2, Some("2026-11-28T22:00:00Z".into()))
        );
    }

    #[test]
    fn an_hour_that_a_clock_change_leaves_out_and_a_day_that_never_comes() {
        // 2:30 does not exist on 29 March 2026 in Berlin: the window begins with the hour after.
        let early = schedule("Europe/Berlin", &[("30 2 * * *", "0 12 * * *", 4)]);
        assert_eq!(at(&early, "2026-03-29T08:00:00Z").0, 4);
        let never = schedule("UTC", &[("0 0 30 2 *", "0 1 30 2 *", 9)]);
        assert_eq!(at(&never, "2026-03-29T08:00:00Z"), (2, None));
    }

    #[test]
    fn an_unknown_time_zone_is_refused_with_its_name() {
        let refused = Schedule::parse(&PoolSchedule {
            time_zone: "Europe/Atlantis".to_owned().try_into().unwrap(),
            windows: Vec::new(),
        });
        assert!(refused.unwrap_err().to_string().contains("Europe/Atlantis"));
    }
}
