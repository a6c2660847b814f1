//! `hearth pause` and `hearth resume`, and how a paused VM is shown.

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, run};

const CLAIMS: &str = r#"{"items":[{"id":"wpi_1","projectId":"prj_1","projectName":"web","taskId":"T1","owner":"ada",
    "claimedAt":"2026-11-24T05:00:00.000Z","expiresAt":"2030-01-01T00:00:00.000Z","unresponsive":null,"paused":true,
    "rebootedAt":null,"vmEndedAt":null,"vmEndedBecause":null}]}"#;

fn server() -> Fake {
    Fake::start(|request| match request.line.as_str() {
        line if line.contains("/pause") => Reply::ok(r#"{"id":"wpi_1","paused":true}"#),
        line if line.contains("/resume") => Reply::ok(r#"{"id":"wpi_1","paused":false}"#),
        line if line.contains("/claims") => Reply::ok(CLAIMS),
        _ => Reply::ok(r#"{"items":[]}"#),
    })
}

#[test]
fn pause_and_resume_say_what_they_did() {
    for (args, request, said) in [
        (
            &["pause", "wpi_1"][..],
            "POST /api/v1/instances/wpi_1/pause?force=false",
            "paused wpi_1: the next command in it resumes it\n",
        ),
        (
            &["pause", "wpi_1", "--force"],
            "POST /api/v1/instances/wpi_1/pause?force=true",
            "paused wpi_1: the next command in it resumes it\n",
        ),
        (
            &["resume", "wpi_1"],
            "POST /api/v1/instances/wpi_1/resume",
            "wpi_1 runs\n",
        ),
    ] {
        let fake = server();
        let ran = run(hearth_at(&fake.url, args));
        assert_eq!((ran.code, ran.stdout.as_str()), (0, said), "{ran:?}");
        let requests = fake.requests();
        assert_eq!(requests.last().unwrap().line, request);
    }
}

#[test]
fn a_paused_vm_is_called_so_in_the_list_of_claims() {
    let fake = server();
    let ran = run(hearth_at(&fake.url, &["claims"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("paused") && !ran.stdout.contains("answers"),
        "{}",
        ran.stdout
    );
}
