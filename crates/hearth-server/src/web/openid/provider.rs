//! The provider: where people are sent, and what it says of who came back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use hearth_api::error::chain;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
    CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata,
    CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AccessToken, AdditionalClaims, AsyncHttpClient, AuthType, AuthorizationCode, Client, ClientId, ClientSecret,
    CsrfToken, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse,
    IdTokenFields, IssuerUrl, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope,
    StandardErrorResponse, StandardTokenResponse, SubjectIdentifier, TokenResponse as _, UserInfoClaims,
};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::attempt::Attempt;
use crate::options::OpenIdSettings;
use crate::webhooks::outgoing_client;

/// How long the provider has for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read: a provider's keys are some kilobytes.
const MOST_BYTES: usize = 1024 * 1024;
/// Addresses and keys of a provider are asked for again after this time.
const METADATA_AGE: Duration = Duration::from_secs(10 * 60);
/// And when a signature does not fit, since keys change; but not for every forged one.
const KEYS_AGE: Duration = Duration::from_secs(30);
/// What is asked of somebody, besides who they are.
const SCOPES: [&str; 2] = ["email", "profile"];

/// All claims that the library has no name for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Others(Map<String, Value>);
impl AdditionalClaims for Others {}

type Fields = IdTokenFields<
    Others,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
type Answer = StandardTokenResponse<Fields, CoreTokenType>;
type OurClient = Client<
    Others,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Answer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// What went wrong between us and the provider; the texts name no secret.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It is away, or says something else than a provider does.
    #[error("the provider {issuer} cannot be asked: {why}")]
    Away { issuer: String, why: String },
    /// It says that this is not who it sent.
    #[error("the provider does not confirm this sign-in ({0}); begin again")]
    NotConfirmed(String),
    /// What it says of somebody has no valid signature, or is not for us.
    #[error("what the provider says of you is not valid: {0}")]
    Invalid(String),
    /// Our address, as the browser named it, is none.
    #[error("this server is reached by no address that a provider could lead back to")]
    OurAddress,
}

/// An HTTP exchange that failed.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("{}", chain(.0))]
    Request(#[from] reqwest::Error),
    #[error("its answer is larger than {MOST_BYTES} bytes")]
    Large,
    #[error(transparent)]
    Http(#[from] http::Error),
}

/// How the library asks the provider.
struct Http(reqwest::Client);

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = BoxFuture<'c, Result<HttpResponse, HttpError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.exchange(request))
    }
}

impl Http {
    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut answer = self.0.execute(request.try_into()?).await?;
        let mut response = http::Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            *headers = std::mem::take(answer.headers_mut());
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MOST_BYTES {
                return Err(HttpError::Large);
            }
        }
        Ok(response.body(body)?)
    }
}

/// Somebody whom the provider knows: the claims of their ID token, with those of the user info that it lacks.
pub struct Person {
    pub subject: String,
    pub claims: Value,
}

/// What it said of itself, and why it last said nothing.
#[derive(Default)]
struct Known {
    said: Option<(Instant, Arc<CoreProviderMetadata>)>,
    failed: Option<(Instant, String)>,
}

/// The provider.
pub struct Provider {
    settings: OpenIdSettings,
    http: Http,
    metadata: Mutex<Known>,
}

impl Provider {
    /// It is asked when somebody signs in, so it may be away until then.
    pub fn new(settings: OpenIdSettings) -> Result<Self, reqwest::Error> {
        Ok(Self {
            settings,
            http: Http(outgoing_client(PATIENCE)?),
            metadata: Mutex::default(),
        })
    }

    /// Its name for people.
    pub fn host(&self) -> &str {
        let rest = self.settings.issuer.split_once("://").map_or("", |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    pub fn settings(&self) -> &OpenIdSettings {
        &self.settings
    }

    /// Where somebody is sent who begins this attempt.
    pub async fn address_for(&self, attempt: &Attempt, callback: &str) -> Result<String, ProviderError> {
        let client = self.client(callback, METADATA_AGE).await?;
        let verifier = PkceCodeVerifier::new(attempt.verifier());
        let (state, nonce) = (attempt.state(), attempt.nonce());
        let (address, _, _) = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                || CsrfToken::new(state),
                || Nonce::new(nonce),
            )
            .add_scopes(SCOPES.map(|scope| Scope::new(scope.to_owned())))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok(address.into())
    }

    /// Who came back from there with this code.
    pub async fn person(&self, attempt: &Attempt, code: &str, callback: &str) -> Result<Person, ProviderError> {
        let client = self.client(callback, METADATA_AGE).await?;
        let answer = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|error| self.away(&error))?
            .set_pkce_verifier(PkceCodeVerifier::new(attempt.verifier()))
            .request_async(&self.http)
            .await
            .map_err(|error| match error {
                openidconnect::RequestTokenError::ServerResponse(refusal) => {
                    ProviderError::NotConfirmed(refusal.error().to_string())
                }
                error => self.away(&error),
            })?;
        let (subject, mut claims) = match self.said_of(&client, &answer, attempt) {
            Ok(said) => said,
            // Its keys may be new.
            Err(ProviderError::Invalid(_)) => {
                let client = self.client(callback, KEYS_AGE).await?;
                self.said_of(&client, &answer, attempt)?
            }
            Err(error) => return Err(error),
        };
        let info = self.user_info(&client, answer.access_token(), &subject).await?;
        // Whether an address was checked is said of the address that stands beside it.
        let is_other = claims.get("email").is_some_and(|own| info.get("email") != Some(own));
        for (name, value) in info
            .into_iter()
            .filter(|(name, _)| !(is_other && name == "email_verified"))
        {
            if let Some(claims) = claims.as_object_mut() {
                claims.entry(name).or_insert(value);
            }
        }
        Ok(Person {
            subject: subject.to_string(),
            claims,
        })
    }

    /// What the ID token says, whose signature, issuer, audience, end and nonce are checked.
    fn said_of(
        &self,
        client: &OurClient,
        answer: &Answer,
        attempt: &Attempt,
    ) -> Result<(SubjectIdentifier, Value), ProviderError> {
        let token = answer
            .id_token()
            .ok_or_else(|| ProviderError::Invalid("it sent no ID token".to_owned()))?;
        let claims = token
            .claims(&client.id_token_verifier(), &Nonce::new(attempt.nonce()))
            .map_err(|error| ProviderError::Invalid(chain(&error)))?;
        let value = serde_json::to_value(claims).map_err(|error| ProviderError::Invalid(error.to_string()))?;
        Ok((claims.subject().clone(), value))
    }

    /// The claims of the user info, for providers that put only the subject into the ID token; empty where they have none.
    async fn user_info(
        &self,
        client: &OurClient,
        access: &AccessToken,
        subject: &SubjectIdentifier,
    ) -> Result<Map<String, Value>, ProviderError> {
        let Ok(request) = client.user_info(access.clone(), Some(subject.clone())) else {
            return Ok(Map::new());
        };
        let info: UserInfoClaims<Others, CoreGenderClaim> = request
            .request_async(&self.http)
            .await
            .map_err(|error| self.away(&error))?;
        match serde_json::to_value(info) {
            Ok(Value::Object(claims)) => Ok(claims),
            _ => Ok(Map::new()),
        }
    }

    /// A client by what the provider says of itself, no older than this.
    async fn client(&self, callback: &str, age: Duration) -> Result<OurClient, ProviderError> {
        let callback = RedirectUrl::new(callback.to_owned()).map_err(|_| ProviderError::OurAddress)?;
        let metadata = self.metadata(age).await?;
        let secret = self.settings.secret.as_ref();
        let client = Client::from_provider_metadata(
            metadata.as_ref().clone(),
            ClientId::new(self.settings.client.clone()),
            secret.map(|secret| ClientSecret::new(secret.expose_secret().to_owned())),
        );
        let takes = metadata.token_endpoint_auth_methods_supported();
        let takes_post_alone = takes.is_some_and(|takes| {
            takes.contains(&CoreClientAuthMethod::ClientSecretPost)
                && !takes.contains(&CoreClientAuthMethod::ClientSecretBasic)
        });
        let way = if takes_post_alone {
            AuthType::RequestBody
        } else {
            AuthType::BasicAuth
        };
        Ok(client.set_redirect_uri(callback).set_auth_type(way))
    }

    async fn metadata(&self, age: Duration) -> Result<Arc<CoreProviderMetadata>, ProviderError> {
        let came = Instant::now();
        // Held while it is asked: many who sign in at once ask it once, and all get its answer, or that there is none.
        let mut known = self.metadata.lock().await;
        if let Some((_, metadata)) = known.said.as_ref().filter(|(at, _)| at.elapsed() < age) {
            return Ok(metadata.clone());
        }
        if let Some((_, why)) = known.failed.as_ref().filter(|(at, _)| *at >= came) {
            return Err(ProviderError::Away {
                issuer: self.settings.issuer.clone(),
                why: why.clone(),
            });
        }
        let issuer = IssuerUrl::new(self.settings.issuer.clone()).map_err(|error| self.away(&error))?;
        let metadata = match CoreProviderMetadata::discover_async(issuer, &self.http).await {
            Ok(metadata) => Arc::new(metadata),
            Err(error) => {
                known.failed = Some((Instant::now(), chain(&error)));
                return Err(self.away(&error));
            }
        };
        known.said = Some((Instant::now(), metadata.clone()));
        Ok(metadata)
    }

    fn away(&self, error: &dyn std::error::Error) -> ProviderError {
        ProviderError::Away {
            issuer: self.settings.issuer.clone(),
            why: chain(error),
        }
    }
}
