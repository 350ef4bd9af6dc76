//! The lists of several servers as one, page by page.

use super::common::Common;
use super::cursor::{Cursor, MAX_PAGES};
use super::joint::{Answer, Asking, Joined};
use super::members;
use super::membership::Member;
use super::merge::{self, Page};
use crate::era::Era;
use crate::errors::Failure;
use crate::splice::Step::Key;
use crate::splice::{Message, find, text_of};

impl Common {
    /// For whom a cursor is good.
    fn owner(&self) -> String {
        match &self.session {
            Some(session) => session.hash.to_string(),
            None => format!("{:?}", self.caller.principal),
        }
    }

    /// The page that the client asks for: of whom, and from where on.
    async fn page(&self, method: &str) -> Result<(Cursor, Vec<(Member, Message)>), Failure> {
        let cursor: &[_] = &[Key("params"), Key("cursor")];
        let places = find(self.text(), &[cursor]).map_err(|_| Failure::Invalid)?;
        let given = places.first().filter(|place| &self.text()[place.range.clone()] != "null");
        let Some(place) = given else {
            self.admit(None).await;
            let mut members = members(&self.visit, self.session.as_ref());
            members.retain(|member| member.can(method.split('/').next().unwrap_or_default()));
            let all = members.into_iter().map(|member| (member, self.bytes.clone().into()));
            return Ok((Cursor::default(), all.collect()));
        };
        let sealed = text_of(&self.text()[place.range.clone()]).ok_or(Failure::ForeignCursor)?;
        let sealer = &self.visit.proxy.federation.sealer;
        let cursor = sealer.read(&self.owner(), method, &sealed);
        let cursor = cursor.map_err(|_| Failure::ForeignCursor)?;
        let own = |member: Member| {
            let (_, own) = cursor.servers.iter().find(|(server, _)| *server == member.server)?;
            let change = vec![(place.range.clone(), own.clone())];
            Some((member, Message::spliced(self.bytes.clone(), change).ok()?))
        };
        let of = members(&self.visit, self.session.as_ref()).into_iter().filter_map(own).collect();
        Ok((cursor, of))
    }
}

impl Asking {
    /// The next page of everybody's list.
    pub(super) async fn list(&self, (method, key): (&str, &'static str)) -> Joined {
        let common = &self.common;
        let (last, of) = match common.page(method).await {
            Ok(page) => page,
            Err(failure) => return Joined { answer: Answer::Ours(failure), absent: Vec::new() },
        };
        let expected: Vec<String> = last.servers.iter().map(|(server, _)| server.clone()).collect();
        let asked = self.ask(&common.visit, of).await;
        let mut next = Cursor { pages: last.pages + 1, servers: Vec::new() };
        let (mut read, mut absent) = (Vec::new(), Vec::new());
        let left = |server: &&String| !asked.iter().any(|(member, _)| member.server == **server);
        absent.extend(expected.iter().filter(left).cloned());
        for (member, gathered) in &asked {
            let text = gathered.answer.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
            match text.map(|text| Page::read(text, key)) {
                Some(Ok(page)) => {
                    if let Some(own) = page.next {
                        let own = (member.server.clone(), own.to_owned());
                        if next.pages >= MAX_PAGES || last.servers.contains(&own) {
                            absent.push(format!("{} (its list goes in circles)", own.0));
                        } else {
                            next.servers.push(own);
                        }
                    }
                    read.push(page);
                }
                _ if gathered.knows_no_such_method() => {}
                _ => absent.push(member.server.clone()),
            }
        }
        if read.is_empty() && !absent.is_empty() {
            return Joined::nothing(&self.id, &asked, absent);
        }
        let sealer = &common.visit.proxy.federation.sealer;
        let sealed =
            (!next.servers.is_empty()).then(|| sealer.write(&common.owner(), method, &next));
        let typed = common.spoken.era == Era::Modern;
        let answer = merge::join((&self.id, key), typed, &read, sealed.as_deref(), &absent);
        Joined { answer: Answer::Of(answer), absent }
    }
}
