//! `hearth top`: all pools, claims and the host's memory at one glance, refreshed while it is shown.

mod picture;
mod seen;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use crate::args::Globals;
use crate::commands::serve::parse_length;
use crate::connect;
use crate::failure::Failure;
use picture::View;
use seen::Seen;

const AFTER_HELP: &str = "\
Keys: q quits, Tab goes from the pools to the claims and back, the arrows select, r refreshes at once, s sorts the pools by name or by
what needs a look.";

/// `hearth top`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TopArgs {
    /// Time between two refreshes, in seconds or like `2s`
    #[arg(long, value_name = "TIME", value_parser = parse_length, default_value = "2s")]
    interval: Duration,
}

/// No server is asked more often.
const SHORTEST: Duration = Duration::from_millis(250);

pub(crate) async fn run(globals: &Globals, args: TopArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    // Before the screen is taken: a server that is not there is said in the usual way.
    let first = Seen::ask(&client).await?;
    if globals.json {
        crate::output::print_json(&first)?;
        return Ok(0);
    }
    if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        return Err(Failure::usage("`hearth top` draws on a terminal, and there is none")
            .hint("`hearth top --json` prints what it would show once"));
    }
    let mut keys = keys();
    let mut terminal = ratatui::try_init().map_err(|error| unusable(&error))?;
    let mut view = View::new(client.address(), first);
    let mut tick = tokio::time::interval(args.interval.max(SHORTEST));
    tick.tick().await;
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| view.draw(frame)) {
            break Err(unusable(&error));
        }
        let ask = tokio::select! {
            _ = tick.tick() => true,
            pressed = keys.recv() => match pressed {
                Some(Pressed::Quit) | None => break Ok(0),
                Some(Pressed::Refresh) => true,
                Some(pressed) => {
                    view.press(&pressed);
                    false
                }
            },
        };
        if ask {
            // What was seen stays, with the reason why it is old.
            match Seen::ask(&client).await {
                Ok(seen) => view.update(seen),
                Err(failure) => view.fault(failure.into_parts().0),
            }
        }
    };
    ratatui::restore();
    ended
}

fn unusable(error: &io::Error) -> Failure {
    ratatui::restore();
    Failure::new(format!("the terminal cannot be used: {error}"))
}

/// What a person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pressed {
    Quit,
    Refresh,
    Next,
    Up,
    Down,
    Sort,
    /// The terminal has another size.
    Redraw,
}

/// Keys as they come; the thread that reads them ends with the program.
fn keys() -> mpsc::Receiver<Pressed> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let pressed = match event {
                Event::Resize(..) => Some(Pressed::Redraw),
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    key_of(key.code, key.modifiers.contains(KeyModifiers::CONTROL))
                }
                _ => None,
            };
            if pressed.is_some_and(|pressed| sender.blocking_send(pressed).is_err()) {
                return;
            }
        }
    });
    receiver
}

fn key_of(code: KeyCode, with_control: bool) -> Option<Pressed> {
    match code {
        KeyCode::Char('c') if with_control => Some(Pressed::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Pressed::Quit),
        KeyCode::Char('r') => Some(Pressed::Refresh),
        KeyCode::Char('s') => Some(Pressed::Sort),
        KeyCode::Tab | KeyCode::BackTab => Some(Pressed::Next),
        KeyCode::Up | KeyCode::Char('k') => Some(Pressed::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Pressed::Down),
        _ => None,
    }
}
