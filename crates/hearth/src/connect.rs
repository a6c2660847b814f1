//! Which server a client command talks to, and with which token: flags, then the environment, then the server that runs
//! on this machine.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use hearth_api::client::Client;

use crate::args::Globals;
use crate::failure::{EXIT_NO_SERVER, EXIT_REFUSED, Failure};
use crate::local::{self, LocalServer};
pub(crate) use crate::resolve::project;
use crate::{hint, input, places};

/// The server's address.
const URL_VARIABLE: &str = "HEARTH_URL";
/// The token.
pub(crate) const TOKEN_VARIABLE: &str = "HEARTH_TOKEN";

/// Where systemd listens for the service of the package, and its data folder: `deploy/systemd/`.
const SERVICE_SOCKET: &str = "/run/hearth.sock";
const SERVICE_DATA_DIR: &str = "/var/lib/hearth";
/// The file of the authority that signed the server's certificate.
const CA_VARIABLE: &str = "HEARTH_CA";
/// All authorities of a system have less.
const AUTHORITIES: input::Bound = input::Bound {
    bytes: 4 * 1024 * 1024,
    than: "the 4 MiB that certificates may have",
};

/// The client for this command.
pub(crate) fn client(globals: &Globals) -> Result<Client, Failure> {
    let (url, token) = server(globals)?;
    reached(globals, &url, &token)
}

/// The server of this command, and the token for it.
pub(crate) fn server(globals: &Globals) -> Result<(String, String), Failure> {
    let token = given_token(globals)?;
    let (url, token) = match (named_url(globals), token) {
        (Some(url), Some(token)) => (url, token),
        (Some(url), None) => {
            let token = token_for(without_base_path(&url))?;
            (url, token)
        }
        (None, token) => {
            let server = the_local_server(places::named_data_dir(globals).as_deref())?;
            let token = match token {
                Some(token) => token,
                None => read_token(&server.token_file)?,
            };
            (server.url, token)
        }
    };
    Ok((without_base_path(&url).to_owned(), token))
}

/// The server's address, if one is named.
pub(crate) fn named_url(globals: &Globals) -> Option<String> {
    match (&globals.url, &globals.data_dir) {
        (Some(url), _) => Some(url.clone()),
        // A folder named on the command line is nearer than an address in the environment.
        (None, Some(_)) => None,
        (None, None) => variable(URL_VARIABLE),
    }
}

/// A client that has no token, for what needs none.
pub(crate) fn without_token(globals: &Globals, url: &str) -> Result<Client, Failure> {
    reached(globals, url, "")
}

fn reached(globals: &Globals, url: &str, token: &str) -> Result<Client, Failure> {
    let url = without_base_path(url);
    let file = globals.ca.clone().or_else(|| variable(CA_VARIABLE).map(PathBuf::from));
    match file {
        Some(file) => {
            let pem = input::file_bytes(&file, AUTHORITIES)?;
            Ok(Client::trusting(url, token, &pem)?)
        }
        None => Ok(Client::new(url, token)?),
    }
}

/// People copy the address that the documents show for requests.
fn without_base_path(url: &str) -> &str {
    let bare = url.trim().trim_end_matches('/');
    bare.strip_suffix("/api/v1").unwrap_or(url)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn given_token(globals: &Globals) -> Result<Option<String>, Failure> {
    match (&globals.token, &globals.token_file) {
        (Some(token), _) => Ok(Some(token.clone())),
        (None, Some(file)) => read_token(file).map(Some),
        (None, None) => Ok(variable(TOKEN_VARIABLE)),
    }
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let name = format!("the token file {}", file.display());
    let text = input::secret(file, &name).map_err(|failure| failure.with_code(EXIT_REFUSED))?;
    Ok(text.trim().to_owned())
}

/// A local server's token goes to that server only.
fn token_for(url: &str) -> Result<String, Failure> {
    let same = |server: &LocalServer| server.url.trim_end_matches('/') == url.trim_end_matches('/');
    let server = local::servers().unwrap_or_default().into_iter().find(same);
    match server {
        Some(server) => read_token(&server.token_file),
        None => Err(Failure::new(format!("no token for {url}"))
            .with_code(EXIT_REFUSED)
            .hint(format!("set {TOKEN_VARIABLE}, or use --token-file"))),
    }
}

fn the_local_server(data_dir: Option<&Path>) -> Result<LocalServer, Failure> {
    let all = local::servers().map_err(|error| Failure::new(error.to_string()).with_code(EXIT_NO_SERVER))?;
    let wanted = data_dir.map(absolute);
    let mut fitting: Vec<LocalServer> = all
        .into_iter()
        .filter(|server| wanted.as_ref().is_none_or(|dir| server.data_dir == *dir))
        .collect();
    if fitting.len() > 1 {
        let mut failure = Failure::usage("several Hearth servers run on this machine");
        for server in &fitting {
            failure = failure.detail(format!(
                "{}  --data-dir {}  (pid {})",
                server.url,
                server.data_dir.display(),
                server.pid
            ));
        }
        return Err(failure.hint(format!(
            "say which one with --data-dir or --url, or for the whole shell in {}",
            places::DATA_DIR_VARIABLE
        )));
    }
    let found = fitting.pop().or_else(|| asleep(wanted.as_deref()));
    found.ok_or_else(|| match wanted {
        Some(dir) => Failure::new(format!(
            "no Hearth server of yours runs with the data folder {}",
            dir.display()
        ))
        .with_code(EXIT_NO_SERVER)
        .hint(format!("start it with `{}`", hint::command(["serve"]))),
        None => Failure::new("no Hearth server of yours runs on this machine")
            .with_code(EXIT_NO_SERVER)
            .hint(format!(
                "start one with `hearth serve`, or name one with {URL_VARIABLE} and {TOKEN_VARIABLE}"
            )),
    })
}

/// The service of the package where systemd listens for it: it starts with the first request.
fn asleep(data_dir: Option<&Path>) -> Option<LocalServer> {
    let service = Path::new(SERVICE_DATA_DIR);
    let listens = fs::symlink_metadata(SERVICE_SOCKET).is_ok_and(|socket| socket.file_type().is_socket());
    let token_file = service.join("admin-token");
    let is_ours = data_dir.is_none_or(|dir| dir == service) && fs::File::open(&token_file).is_ok();
    (listens && is_ours).then(|| LocalServer {
        url: format!("unix:{SERVICE_SOCKET}"),
        token_file,
        pid: 0,
        data_dir: service.to_owned(),
    })
}

/// As the server wrote it: absolute, links resolved.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .unwrap_or_else(|_| path.to_owned())
}
