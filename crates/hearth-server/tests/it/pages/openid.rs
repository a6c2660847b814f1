//! People who sign in by OpenID Connect: at a real provider in Chromium, and what is refused without one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_server::OpenIdSettings;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::browser::Window;
use super::{Form as _, client};
use crate::harness::{SOON, Server, options};
use crate::metrics::free_address;

const CLIENT: &str = "hearth";
const SECRET: &str = "0p3n1d-s3cr3t-of-a-test";
const BACK: &str = "/sign-in/openid/back";

/// A provider that ends with this.
struct Provider {
    issuer: String,
    _child: Child,
}

impl Provider {
    async fn start(callback: &str) -> Self {
        let packages = std::env::var_os("HEARTH_OPENID").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/openid")),
            PathBuf::from,
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openid/provider.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .args([callback, CLIENT, SECRET])
            .current_dir(packages)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node does not start: `cargo xtask test openid` fetches what it needs");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let issuer = lines.next_line().await.unwrap().expect("the provider says its issuer");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { issuer, _child: child }
    }
}

/// A server whose people sign in at the provider that this makes for the address it is called back at.
async fn server_at(issuer: impl AsyncFnOnce(&str) -> String, rules: &[&str]) -> Server {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    let address = free_address();
    options.listen = vec![address.into()];
    let issuer = issuer(&format!("http://localhost:{}{BACK}", address.port())).await;
    let mut settings = OpenIdSettings::new(issuer, CLIENT.to_owned());
    settings.secret = Some(SECRET.into());
    settings.rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    options.openid = Some(settings);
    let driver = FakeDriver::new(1, FakeOptions::default());
    Server::start(folder, options, move |_| Ok(Arc::new(driver)))
        .await
        .unwrap()
}

/// At the provider: the name, any password, and yes.
async fn log_in(window: &Window, name: &str) {
    window.go("/claims").await;
    window.is_at("/sign-in").await;
    window.click("Sign in at 127.0.0.1").await;
    window
        .until("document.querySelector('input[name=login]') !== null")
        .await;
    window.fill("input[name=login]", name).await;
    window.fill("input[name=password]", "any").await;
    window.click("Sign-in").await;
    window.click("Continue").await;
    window.until("location.hostname === 'localhost'").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium and a provider from npm (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn people_sign_in_at_a_provider_as_the_rules_say() {
    let mut provider = None;
    let rules = [
        "groups=platform scopes=admin",
        "email=*@example.com scopes=project:read",
    ];
    let server = server_at(
        async |callback| {
            let started = provider.insert(Provider::start(callback).await);
            started.issuer.clone()
        },
        &rules,
    )
    .await;

    // The session's cookie is strict, and the browser comes from another site.
    let window = Window::open(&server).await;
    window.go("/sign-in").await;
    window.shots("sign-in-openid").await;
    log_in(&window, "ada").await;
    window.is_at("/claims").await;
    window.go("/tokens").await;
    window.sees("sign-in of ada@example.com").await;
    let token = async || {
        let all = server.get("/tokens").await;
        let items = all["items"].as_array().unwrap().clone();
        items
            .into_iter()
            .filter(|item| item["name"] != "first admin token")
            .collect::<Vec<Value>>()
    };
    let made = token().await;
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(made[0]["owner"], "ada@example.com");
    assert_eq!(made[0]["scopes"], json!(["admin"]));
    assert!(made[0]["expiresAt"].is_string(), "{made:?}");
    let signed_in = |entry: &Value| entry["operation"] == "sign_in_with_openid" && entry["owner"] == "ada@example.com";
    server
        .until(SOON, "/audit", |audit| {
            audit["items"].as_array().unwrap().iter().any(signed_in)
        })
        .await;

    // Out, and in again: the provider still knows who it is, and the token is the same.
    window.click("Sign out").await;
    window.is_at("/sign-in").await;
    window.click("Sign in at 127.0.0.1").await;
    window.is_at("/").await;
    window.sees("Projects").await;
    assert_eq!(token().await[0]["id"], made[0]["id"]);

    // Revoked: the session ends at once.
    let id = made[0]["id"].as_str().unwrap();
    let (status, _) = server.call(Method::DELETE, &format!("/tokens/{id}"), Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    window.go("/claims").await;
    window.is_at("/sign-in").await;
    window.close().await;

    // One whom no rule fits, and one whose address the provider has not checked: both stay out, and are told why.
    for (name, known_as) in [("bob", "bob@elsewhere.example"), ("eve", "sub:eve")] {
        let window = Window::open(&server).await;
        log_in(&window, name).await;
        window
            .sees(&format!(
                "The provider knows you as {known_as}, and no rule of this server lets you in"
            ))
            .await;
        window.shot(&format!("sign-in-openid-{name}")).await;
        window.go("/claims").await;
        window.is_at("/sign-in").await;
        window.close().await;
    }
    assert!(token().await.is_empty());

    // The provider goes away: a sentence, and the form for a token.
    drop(provider);
    server.stop().await;
}

/// Signs in without a browser, up to where the provider is asked; the address it leads to, and the cookie.
async fn begin(server: &Server) -> (Url, String) {
    let begun = client()
        .get(format!("http://{}/sign-in/openid?next=/host", server.address))
        .send()
        .await
        .unwrap();
    assert_eq!(begun.status(), StatusCode::SEE_OTHER, "{}", begun.text().await.unwrap());
    let cookie = begun.headers()[SET_COOKIE].to_str().unwrap();
    assert!(
        cookie.contains("Path=/sign-in/openid; Max-Age=900; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().unwrap().to_owned();
    (begun.headers()[LOCATION].to_str().unwrap().parse().unwrap(), cookie)
}

/// Comes back with these, and is refused; what the page says.
async fn refused(server: &Server, cookie: &str, query: &[(&str, &str)]) -> (StatusCode, String) {
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(query)
        .finish();
    let answer = client()
        .get(format!("http://{}{BACK}?{query}", server.address))
        .header(COOKIE, cookie)
        .send()
        .await
        .unwrap();
    for cookie in answer.headers().get_all(SET_COOKIE) {
        assert!(!cookie.to_str().unwrap().starts_with("hearth_session="), "{cookie:?}");
    }
    (answer.status(), answer.text().await.unwrap())
}

/// What a provider says of itself; its token endpoint gives this ID token.
async fn stand_in(id_token: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let about = json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    });
    let own = issuer.clone();
    let give = async move || {
        let token = id_token(&own);
        Json(json!({ "access_token": "a", "token_type": "Bearer", "id_token": token }))
    };
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(async || Json(about)))
        .route("/keys", get(async || Json(json!({ "keys": [] }))))
        .route("/token", axum::routing::post(give));
    tokio::spawn(async move { axum::serve(listener, router).await });
    issuer
}

/// An ID token whose signature is none.
fn unsigned(algorithm: &str, issuer: &str) -> String {
    let part = |value: Value| BASE64.encode(value.to_string());
    let now = jiff::Timestamp::now().as_second();
    let claims =
        json!({ "iss": issuer, "aud": CLIENT, "sub": "mallory", "iat": now, "exp": now + 600, "groups": ["platform"] });
    let header = part(json!({ "alg": algorithm, "typ": "JWT" }));
    let signature = if algorithm == "none" {
        String::new()
    } else {
        BASE64.encode("no signature")
    };
    format!("{header}.{}.{signature}", part(claims))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_without_what_the_provider_signed_for_this_attempt_stays_out() {
    let rules = ["groups=platform scopes=admin"];
    for algorithm in ["none", "RS256", "HS256"] {
        let server = server_at(
            async |_| stand_in(move |issuer| unsigned(algorithm, issuer)).await,
            &rules,
        )
        .await;
        let (to, cookie) = begin(&server).await;
        let asked = |name: &str| {
            let mut pairs = to.query_pairs();
            pairs
                .find_map(|(own, value)| (own == name).then(|| value.into_owned()))
                .unwrap()
        };
        assert_eq!(asked("client_id"), CLIENT);
        assert_eq!(asked("code_challenge_method"), "S256");
        assert_eq!(asked("scope"), "openid email profile");
        assert_eq!(asked("redirect_uri"), format!("http://{}{BACK}", server.address));
        assert!(!to.as_str().contains(SECRET) && !asked("nonce").is_empty());
        let state = asked("state");

        let (status, page) = refused(&server, &cookie, &[("code", "x"), ("state", &state)]).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{algorithm}: {page}");
        assert!(
            page.contains("What the provider says of you is not valid"),
            "{algorithm}: {page}"
        );

        // Nor with another state, another cookie, none, or what the provider refused.
        let other = begin(&server).await.1;
        let forged = cookie.replacen(|c: char| c.is_ascii_digit(), "f", 1);
        for (cookie, state) in [
            (cookie.as_str(), "x"),
            (&other, &state),
            (&forged, &state),
            ("", &state),
        ] {
            let (status, page) = refused(&server, cookie, &[("code", "x"), ("state", state)]).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{page}");
            assert!(page.contains("was not begun in this browser"), "{page}");
        }
        let no = [
            ("error", "access_denied"),
            ("error_description", "<b>no</b>"),
            ("state", &state),
        ];
        let (status, page) = refused(&server, &cookie, &no).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(page.contains("access_denied: &lt;b&gt;no&lt;/b&gt;"), "{page}");
        let (status, _) = refused(&server, &cookie, &[("state", &state)]).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        let tokens = server.get("/tokens").await;
        assert_eq!(tokens["items"].as_array().unwrap().len(), 1, "{tokens}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_that_is_away_leaves_the_form_for_a_token() {
    let gone = format!("http://{}", free_address());
    let server = server_at(async |_| gone.clone(), &["sub=* scopes=claim"]).await;
    let answer = client()
        .get(format!("http://{}/sign-in/openid", server.address))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let page = answer.text().await.unwrap();
    assert!(
        page.contains("cannot be asked") && page.contains(&gone) && page.contains("id=\"token\""),
        "{page}"
    );
    let form = client()
        .post(format!("http://{}/sign-in", server.address))
        .form(&[("token", &server.token)])
        .send()
        .await
        .unwrap();
    assert_eq!(form.status(), StatusCode::SEE_OTHER);
    server.stop().await;

    // And a server without a provider knows no such page.
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let answer = client()
        .get(format!("http://{}/sign-in/openid", server.address))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    server.stop().await;
}
