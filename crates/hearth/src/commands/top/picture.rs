//! The picture: the host, the pools, the claims. Words carry the meaning, colours only repeat it.

use std::time::Duration;

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Gauge, Paragraph, Row, Table, TableState};

use super::Pressed;
use super::seen::{Pool, Seen};
use crate::output;
use crate::text::clean_line;

/// Lines of the host's part.
const HOST_LINES: u16 = 4;

/// Which list the arrows move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Focus {
    Pools,
    Claims,
}

/// What is shown, and what is selected in it.
pub(super) struct View {
    url: String,
    seen: Seen,
    at: Timestamp,
    fault: Option<String>,
    focus: Focus,
    by_need: bool,
    pools: TableState,
    claims: TableState,
}

impl View {
    pub(super) fn new(url: String, seen: Seen) -> Self {
        let mut view = Self {
            url,
            seen,
            at: Timestamp::now(),
            fault: None,
            focus: Focus::Pools,
            by_need: true,
            pools: TableState::default().with_selected(0),
            claims: TableState::default().with_selected(0),
        };
        view.sort();
        view
    }

    pub(super) fn update(&mut self, seen: Seen) {
        (self.seen, self.at, self.fault) = (seen, Timestamp::now(), None);
        self.sort();
    }

    /// What is shown gets old, for this reason.
    pub(super) fn fault(&mut self, why: String) {
        self.fault = Some(clean_line(&why));
    }

    fn sort(&mut self) {
        let by_need = self.by_need;
        self.seen
            .pools
            .sort_by_key(|pool| (by_need && !pool.needs_a_look(), pool.name.to_lowercase()));
    }

    pub(super) fn press(&mut self, pressed: &Pressed) {
        let (state, length) = match self.focus {
            Focus::Pools => (&mut self.pools, self.seen.pools.len()),
            Focus::Claims => (&mut self.claims, self.seen.claims.len()),
        };
        let selected = state.selected().unwrap_or_default();
        match pressed {
            Pressed::Up => state.select(Some(selected.saturating_sub(1))),
            Pressed::Down => state.select(Some((selected + 1).min(length.saturating_sub(1)))),
            Pressed::Next => {
                self.focus = match self.focus {
                    Focus::Pools => Focus::Claims,
                    Focus::Claims => Focus::Pools,
                }
            }
            Pressed::Sort => {
                self.by_need = !self.by_need;
                self.sort();
            }
            Pressed::Quit | Pressed::Refresh | Pressed::Redraw => {}
        }
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, host, pools, why, claims, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(HOST_LINES),
            Constraint::Fill(3),
            Constraint::Length(2),
            Constraint::Fill(2),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(), head);
        self.draw_host(frame, host);
        self.draw_pools(frame, pools);
        let chosen = self.pools.selected().and_then(|at| self.seen.pools.get(at));
        let summary = chosen
            .map(|pool| format!("{}: {}", pool.name, pool.summary))
            .unwrap_or_default();
        let wrap = ratatui::widgets::Wrap { trim: true };
        frame.render_widget(Paragraph::new(summary).wrap(wrap), why);
        self.draw_claims(frame, claims);
        let keys = "q quit   Tab pools/claims   ↑↓ select   r refresh   s sort";
        frame.render_widget(
            Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)),
            foot,
        );
    }

    fn head(&self) -> Line<'_> {
        let time = self.at.strftime("%H:%M:%S UTC");
        let title = Span::styled(
            format!("hearth  {}  {time}", self.url),
            Style::new().add_modifier(Modifier::BOLD),
        );
        match &self.fault {
            Some(why) => Line::from(vec![
                title,
                Span::styled(format!("  not refreshed: {why}"), Style::new().fg(Color::Red)),
            ]),
            None => Line::from(title),
        }
    }

    fn draw_host(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(host) = &self.seen.host else {
            return frame.render_widget(
                Paragraph::new("no project yet: `hearth project create NAME --repo OWNER/NAME`"),
                area,
            );
        };
        let lines = Layout::vertical([Constraint::Length(1); HOST_LINES as usize - 1]).split(area);
        let bars = [
            (
                format!("memory {} of {} MiB", host.memory_mib, host.max_memory_mib),
                host.memory_mib,
                host.max_memory_mib,
            ),
            (format!("VMs {} of {}", host.vms, host.max_vms), host.vms, host.max_vms),
            (
                format!(
                    "checkpoints {} of {} MiB",
                    host.template_disk_bytes >> 20,
                    host.max_template_disk_bytes >> 20
                ),
                host.template_disk_bytes,
                host.max_template_disk_bytes,
            ),
        ];
        for ((label, used, most), line) in bars.into_iter().zip(lines.iter()) {
            let gauge = Gauge::default()
                .label(label)
                .ratio(share(used, most))
                .gauge_style(Style::new().fg(Color::Blue));
            frame.render_widget(gauge, *line);
        }
    }

    fn draw_pools(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.seen.pools.iter().map(|pool| {
            let numbers = [pool.provisioning, pool.failed, pool.waiting].map(|number| number.to_string());
            let [provisioning, failed, waiting] = numbers;
            let ready = format!("{} of {}", pool.ready, if pool.enabled { pool.target } else { 0 });
            Row::new([
                pool.name.clone(),
                ready,
                provisioning,
                failed,
                waiting,
                state(pool).to_owned(),
            ])
            .style(colour(pool))
        });
        let widths = [
            Constraint::Fill(2),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(12),
            Constraint::Length(14),
            Constraint::Fill(2),
        ];
        let more = match self.seen.more {
            0 => String::new(),
            more => format!(", {more} more not shown"),
        };
        let title = format!(" Pools ({}{more}) ", self.seen.pools.len());
        let table = Table::new(rows, widths)
            .header(header([
                "Project",
                "Ready",
                "Being made",
                "Failed, 24 h",
                "Waiting claims",
                "State",
            ]))
            .block(block(&title, self.focus == Focus::Pools))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.pools);
    }

    fn draw_claims(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let now = Timestamp::now();
        let text = |text: &Option<String>| clean_line(text.as_deref().unwrap_or("-"));
        let rows = self.seen.claims.iter().map(|claim| {
            let state = match (claim.vm_ended_at, &claim.unresponsive, claim.paused) {
                (Some(_), _, _) => "ended",
                (None, Some(_), _) => "does not answer",
                (None, None, true) => "paused",
                (None, None, false) => "answers",
            };
            Row::new([
                claim.id.to_string(),
                clean_line(&claim.project_name),
                text(&claim.task_id),
                text(&claim.owner),
                output::duration(length(now, claim.expires_at)),
                output::duration(length(claim.claimed_at, now)),
                state.to_owned(),
            ])
        });
        let widths = [
            Constraint::Length(36),
            Constraint::Fill(2),
            Constraint::Fill(2),
            Constraint::Fill(1),
            Constraint::Length(12),
            Constraint::Length(12),
            Constraint::Length(15),
        ];
        let title = format!(" Claims ({}) ", self.seen.claims.len());
        let table = Table::new(rows, widths)
            .header(header([
                "Instance",
                "Project",
                "Task",
                "Owner",
                "Lease left",
                "Age",
                "VM",
            ]))
            .block(block(&title, self.focus == Focus::Claims))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.claims);
    }
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn block(title: &str, has_focus: bool) -> Block<'static> {
    let block = Block::bordered().title(title.to_owned());
    if has_focus {
        block.border_style(Style::new().add_modifier(Modifier::BOLD))
    } else {
        block.border_style(Style::new().add_modifier(Modifier::DIM))
    }
}

fn state(pool: &Pool) -> &'static str {
    match pool {
        Pool { enabled: false, .. } => "off",
        Pool { waiting: 1.., .. } => "claims wait",
        _ if pool.ready >= pool.target => "full",
        _ if pool.provisioning > 0 => "filling",
        _ => "below its target",
    }
}

fn colour(pool: &Pool) -> Style {
    match state(pool) {
        "full" => Style::new().fg(Color::Green),
        "below its target" | "claims wait" => Style::new().fg(Color::Red),
        "filling" => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

/// A part of the whole, from 0 to 1.
fn share(used: u64, most: u64) -> f64 {
    if most == 0 {
        0.0
    } else {
        (used as f64 / most as f64).min(1.0)
    }
}

/// From one time to another; nothing when the clocks disagree.
fn length(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn pool(name: &str, ready: u64, provisioning: u64, waiting: u64) -> Pool {
        Pool {
            name: name.to_owned(),
            enabled: true,
            target: 2,
            ready,
            provisioning,
            failed: 0,
            waiting,
            summary: format!("why {name} is so"),
        }
    }

    fn shown(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn pools_that_need_a_look_come_first_and_keys_move() {
        let pools = vec![
            pool("alpha", 2, 0, 0),
            pool("beta", 1, 1, 0),
            pool("gamma", 0, 0, 0),
            pool("omega", 2, 0, 3),
        ];
        let seen = Seen {
            pools,
            more: 7,
            claims: Vec::new(),
            host: None,
        };
        let mut view = View::new("http://h:1".to_owned(), seen);
        let first = shown(&mut view, 120, 30);
        let at = |name: &str| first.find(name).unwrap_or_else(|| panic!("{name} in {first}"));
        assert!(
            at("gamma") < at("omega") && at("omega") < at("alpha") && at("alpha") < at("beta"),
            "{first}"
        );
        for text in [
            "below its target",
            "claims wait",
            "full",
            "filling",
            "7 more not shown",
            "why gamma is so",
            "q quit",
        ] {
            assert!(first.contains(text), "{text} in {first}");
        }
        view.press(&Pressed::Down);
        assert!(shown(&mut view, 120, 30).contains("why omega is so"));
        view.press(&Pressed::Sort);
        view.press(&Pressed::Up);
        assert!(shown(&mut view, 120, 30).contains("why alpha is so"));
        view.fault("the server is gone\u{1b}[2J".to_owned());
        assert!(shown(&mut view, 120, 30).contains("not refreshed: the server is gone"));
        // A terminal of any size can be drawn on.
        for (width, height) in [(1, 1), (20, 5), (80, 24)] {
            shown(&mut view, width, height);
        }
    }
}
