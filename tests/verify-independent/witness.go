package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// A witness's key, for Go's notes (C2SP tlog-cosignature, Ed25519).
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (c cosigner) Name() string    { return c.name }
func (c cosigner) KeyHash() uint32 { return c.hash }

func (c cosigner) Verify(text, sig []byte) bool {
	if len(sig) != 72 {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", at, text)
	return at < 1<<63 && ed25519.Verify(c.key, []byte(message), sig[8:])
}

func parseCosigner(vkey string) (cosigner, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return cosigner{}, errors.New("no key")
	}
	data, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(data) != 33 || data[0] != 4 {
		return cosigner{}, errors.New("no key of a witness")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), data...))
	hash := binary.BigEndian.Uint32(sum[:])
	if fmt.Sprintf("%08x", hash) != parts[1] {
		return cosigner{}, errors.New("its id does not fit")
	}
	return cosigner{parts[0], hash, data[1:]}, nil
}

// A policy (C2SP tlog-policy): who has to have cosigned.
type policy struct {
	logs      []string
	witnesses map[string]cosigner
	groups    map[string]group
	quorum    string
}

type group struct {
	least   int
	members []string
}

func readPolicy(path string) (*policy, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p := policy{witnesses: map[string]cosigner{}, groups: map[string]group{}}
	for i, line := range strings.Split(string(data), "\n") {
		if err := p.line(strings.Fields(line)); err != nil {
			return nil, wrong(fmt.Sprintf("%s line %d", path, i+1), "%v", err)
		}
	}
	if p.quorum == "" {
		return nil, wrong(path, "no quorum")
	}
	return &p, nil
}

func (p *policy) line(words []string) error {
	switch {
	case len(words) == 0 || strings.HasPrefix(words[0], "#"):
	case words[0] == "log" && len(words) >= 2:
		p.logs = append(p.logs, words[1])
	case words[0] == "witness" && len(words) >= 3:
		key, err := parseCosigner(words[2])
		p.witnesses[words[1]] = key
		return err
	case words[0] == "group" && len(words) >= 4:
		g := group{members: words[3:]}
		switch words[2] {
		case "all":
			g.least = len(g.members)
		case "any":
			g.least = 1
		default:
			g.least, _ = strconv.Atoi(words[2])
		}
		if g.least < 1 || g.least > len(g.members) {
			return errors.New("how many of them?")
		}
		for _, m := range g.members {
			if !p.knows(m) {
				return fmt.Errorf("%s is not known", m)
			}
		}
		p.groups[words[1]] = g
	case words[0] == "quorum" && len(words) == 2 && p.quorum == "":
		if words[1] != "none" && !p.knows(words[1]) {
			return fmt.Errorf("%s is not known", words[1])
		}
		p.quorum = words[1]
	default:
		return errors.New("it is not understood")
	}
	return nil
}

func (p *policy) knows(name string) bool {
	_, witness := p.witnesses[name]
	_, group := p.groups[name]
	return witness || group
}

func (p *policy) met(name string, by map[string]bool) bool {
	g, is := p.groups[name]
	if !is {
		return by[name]
	}
	have := 0
	for _, m := range g.members {
		if p.met(m, by) {
			have++
		}
	}
	return have >= g.least
}

// checkWitnessed compares the cosigned head with the log, and its cosignatures with the policy.
func checkWitnessed(log deploymentLog, entries [][]byte, p *policy, read files) error {
	const name = "log/witnessed"
	message, err := read(name)
	if err != nil {
		if p != nil && p.quorum != "none" {
			return wrong(name, "nobody has cosigned the log")
		}
		return nil
	}
	text, _, err := open(message, log.ring.log)
	if err != nil {
		return wrong(name, "%v", err)
	}
	head, err := parseCheckpoint(text)
	if err != nil || head.origin != log.ring.deployment {
		return wrong(name, "another log's: %v", err)
	}
	if head.size > uint64(len(entries)) {
		return wrong(name, "%d entries were cosigned and there are %d: rolled back", head.size, len(entries))
	}
	if head.root != rootOf(entries[:head.size]) {
		return wrong(name, "another log was cosigned")
	}
	if p == nil {
		return nil
	}
	var logs []key
	for _, vkey := range p.logs {
		logs = append(logs, key{vkey: vkey})
	}
	if _, _, err := open(message, logs); len(logs) > 0 && err != nil {
		return wrong(name, "no log of the policy has signed it")
	}
	by := map[string]bool{}
	for who, c := range p.witnesses {
		n, err := note.Open(bytes.Clone(message), note.VerifierList(c))
		by[who] = err == nil && n.Text == text
	}
	if p.quorum != "none" && !p.met(p.quorum, by) {
		return wrong(name, "too few have cosigned it")
	}
	fmt.Printf("%d of %d entries of the log cosigned\n", head.size, len(entries))
	return nil
}
