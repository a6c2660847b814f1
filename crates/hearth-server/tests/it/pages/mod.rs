//! The pages for people: without a browser here; with Chromium in [`story`].

mod browser;
mod guard;
mod lists;
mod looks;
mod openid;
mod story;

use std::time::Instant;

use reqwest::header::{ACCEPT, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};

use crate::harness::{SOON, Server, install_tls, pause};

/// Somebody with a browser that has no scripts.
pub struct Person {
    http: Client,
    base: String,
    cookie: String,
    pub proof: String,
}

impl Person {
    /// Signs in, as the form does.
    pub async fn sign_in(server: &Server, token: &str) -> Self {
        let (http, base) = (client(), format!("http://{}", server.address));
        let answer = http
            .post(format!("{base}/sign-in"))
            .form(&[("token", token)])
            .send()
            .await
            .unwrap();
        assert_eq!(
            answer.status(),
            StatusCode::SEE_OTHER,
            "{}",
            answer.text().await.unwrap()
        );
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("; HttpOnly; SameSite=Strict"), "{cookie}");
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let mut person = Self {
            http,
            base,
            cookie,
            proof: String::new(),
        };
        let page = person.page("/claims").await;
        let (_, rest) = page.split_once("data-proof=\"").unwrap();
        person.proof = rest.split('"').next().unwrap().to_owned();
        person
    }

    /// A request of their browser.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .header(ACCEPT, "text/html")
            .header(COOKIE, &self.cookie)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// A page that opens.
    pub async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await;
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        text
    }

    /// The same once it has this: some things are written a moment later.
    pub async fn until(&self, path: &str, part: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let page = self.page(path).await;
            if page.contains(part) {
                return page;
            }
            assert!(Instant::now() < deadline, "{path} never had {part}: {page}");
            pause().await;
        }
    }

    /// A form of one of the pages.
    pub async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        let mut fields = fields.to_vec();
        fields.push(("page", &self.proof));
        self.request(Method::POST, path).form(&fields).send().await.unwrap()
    }

    /// A form that is taken; where it leads.
    pub async fn send(&self, path: &str, fields: &[(&str, &str)]) -> String {
        let answer = self.post(path, fields).await;
        let status = answer.status();
        let to = answer.headers().get(LOCATION).cloned();
        assert_eq!(
            status,
            StatusCode::SEE_OTHER,
            "{path}: {}",
            answer.text().await.unwrap()
        );
        to.unwrap().to_str().unwrap().to_owned()
    }
}

/// A request with a form.
pub trait Form {
    fn form(self, fields: &[(&str, &str)]) -> Self;
}

impl Form for RequestBuilder {
    fn form(self, fields: &[(&str, &str)]) -> Self {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        self.header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body)
    }
}

/// A client that follows nowhere.
pub fn client() -> Client {
    install_tls();
    Client::builder().redirect(Policy::none()).build().unwrap()
}
