//! Name queries and answers, as bytes: what is asked, what an answer says, and the answers that are made here. Pure.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RData;

/// A query that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// The client's number for it.
    pub(super) id: u16,
    /// In small letters and without a dot at its end.
    pub(super) name: String,
    query: Query,
    recursion_desired: bool,
}

/// The same name always becomes the same text.
fn plain(query: &Query) -> String {
    let name = query.name().to_ascii().to_ascii_lowercase();
    name.strip_suffix('.').unwrap_or(&name).to_owned()
}

/// Reads a query with one question.
pub(super) fn question(bytes: &[u8]) -> Option<Question> {
    let mut message = Message::from_vec(bytes).ok()?;
    let is_query = message.metadata.message_type == MessageType::Query && message.metadata.op_code == OpCode::Query;
    if !is_query || message.queries.len() != 1 {
        return None;
    }
    let query = message.queries.pop()?;
    Some(Question {
        id: message.metadata.id,
        name: plain(&query),
        query,
        recursion_desired: message.metadata.recursion_desired,
    })
}

impl Question {
    fn answer(&self, code: ResponseCode) -> Option<Vec<u8>> {
        let mut message = Message::error_msg(self.id, OpCode::Query, code);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        message.to_vec().ok()
    }

    /// There is no such name. Not "refused": that is taken for a passing fault and asked again, by many programs for minutes.
    pub(super) fn no_such_name(&self) -> Option<Vec<u8>> {
        self.answer(ResponseCode::NXDomain)
    }

    /// The answer is not known now.
    pub(super) fn failed(&self) -> Option<Vec<u8>> {
        self.answer(ResponseCode::ServFail)
    }

    /// The addresses in an answer to this question, and how long each may be used; `None` when it is no answer to it.
    pub(super) fn addresses(&self, bytes: &[u8]) -> Option<Vec<(Ipv4Addr, Duration)>> {
        let message = Message::from_vec(bytes).ok()?;
        let is_answer = message.metadata.message_type == MessageType::Response
            && message.queries.len() == 1
            && message
                .queries
                .iter()
                .all(|query| plain(query) == self.name && query.query_type() == self.query.query_type());
        if !is_answer {
            return None;
        }
        let address = |data: &RData| match data {
            RData::A(address) => Some(address.0),
            _ => None,
        };
        let records = message.answers.iter();
        Some(
            records
                .filter_map(|record| Some((address(&record.data)?, Duration::from_secs(record.ttl.into()))))
                .collect(),
        )
    }
}

/// The same message under another number.
pub(super) fn renumber(bytes: &mut [u8], id: u16) {
    if let Some(at) = bytes.first_chunk_mut() {
        *at = id.to_be_bytes();
    }
}

/// The number of a message.
pub(super) fn number(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|at| u16::from_be_bytes(*at))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, Record, RecordType};

    use super::*;

    fn query(name: &str) -> (Message, Vec<u8>) {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let bytes = message.to_vec().unwrap();
        (message, bytes)
    }

    #[test]
    fn question_is_read_in_small_letters_and_rubbish_is_none() {
        let (_, bytes) = query("Registry.NPMJS.org.");
        let question = question(&bytes).unwrap();
        assert_eq!((question.id, question.name.as_str()), (4711, "registry.npmjs.org"));
        let refusal = Message::from_vec(&question.no_such_name().unwrap()).unwrap();
        assert_eq!(refusal.metadata.id, 4711);
        assert_eq!(refusal.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(refusal.queries.len(), 1);
        // An answer is no question, and what is cut off is neither.
        assert_eq!(super::question(&question.failed().unwrap()), None);
        for length in 0..bytes.len() {
            assert_eq!(super::question(&bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn addresses_of_an_answer_count_and_those_to_another_question_do_not() {
        let (message, bytes) = query("a.example.");
        let question = question(&bytes).unwrap();
        let mut answer = message.into_response();
        let alias = Name::from_ascii("cdn.example.").unwrap();
        answer.add_answer(Record::from_rdata(
            alias,
            30,
            RData::A(A(Ipv4Addr::new(203, 0, 113, 7))),
        ));
        let answer = answer.to_vec().unwrap();
        assert_eq!(
            question.addresses(&answer),
            Some(vec![(Ipv4Addr::new(203, 0, 113, 7), Duration::from_secs(30))])
        );
        let other = super::question(&query("b.example.").1).unwrap();
        assert_eq!(other.addresses(&answer), None);
        assert_eq!(question.addresses(&bytes), None, "a query is no answer");
    }
}
