package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Files by their names.
type files func(name string) ([]byte, error)

type key struct {
	name, vkey string
	from       uint64
	until      uint64 // 0: still in force
	active     bool
}

type keyring struct {
	deployment   string
	edition      int
	log, writers []key
}

type checkpoint struct {
	origin string
	size   uint64
	root   tlog.Hash
	until  uint64
}

// A log as far as it was verified.
type deploymentLog struct {
	ring    keyring
	size    int
	streams map[string]map[uint64]checkpoint // by stream and size
	rings   map[string]bool                  // the keyrings that its entries name
}

func (l deploymentLog) last(stream string) checkpoint {
	var last checkpoint
	for size, c := range l.streams[stream] {
		if size >= last.size {
			last = c
		}
	}
	return last
}

// splitEntries reads an entry bundle of any length.
func splitEntries(place string, data []byte) ([][]byte, error) {
	var found [][]byte
	for len(data) > 0 {
		if len(data) < 2 {
			return nil, wrong(place, "an entry is cut short")
		}
		n := int(binary.BigEndian.Uint16(data))
		if len(data) < 2+n {
			return nil, wrong(place, "an entry is cut short")
		}
		found = append(found, data[2:2+n])
		data = data[2+n:]
	}
	return found, nil
}

// rootOf is RFC 6962's tree hash, with Go's functions for leaves and nodes.
func rootOf(entries [][]byte) tlog.Hash {
	if len(entries) == 0 {
		return tlog.Hash(sha256.Sum256(nil))
	}
	var peaks peaks
	for _, e := range entries {
		peaks.push(0, tlog.RecordHash(e))
	}
	return peaks.root()
}

func parseCheckpoint(text string) (checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 {
		return checkpoint{}, errors.New("no checkpoint")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return checkpoint{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return checkpoint{origin: lines[0], size: size, root: root}, err
}

// open reads a note that one of the keys has signed, and says which.
func open(message []byte, keys []key) (string, key, error) {
	for _, k := range keys {
		v, err := note.NewVerifier(k.vkey)
		if err != nil {
			return "", key{}, err
		}
		if n, err := note.Open(message, note.VerifierList(v)); err == nil {
			return n.Text, k, nil
		}
	}
	return "", key{}, errors.New("no key that may has signed it")
}

func parseKeyring(text string) (keyring, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 2 || !strings.HasSuffix(lines[0], "/keyring") {
		return keyring{}, errors.New("no keyring")
	}
	edition, err := strconv.Atoi(lines[1])
	if err != nil {
		return keyring{}, err
	}
	ring := keyring{deployment: strings.TrimSuffix(lines[0], "/keyring"), edition: edition}
	for _, line := range lines[2:] {
		words := strings.Split(line, " ")
		if len(words) != 5 {
			return keyring{}, fmt.Errorf("key %q", line)
		}
		from, err := strconv.ParseUint(words[2], 10, 63)
		if err != nil {
			return keyring{}, err
		}
		k := key{name: words[0], vkey: words[1], from: from, active: words[4] == "active"}
		if words[3] != "-" {
			if k.until, err = strconv.ParseUint(words[3], 10, 63); err != nil {
				return keyring{}, err
			}
		}
		if k.name == "log" {
			ring.log = append(ring.log, k)
		} else {
			ring.writers = append(ring.writers, k)
		}
	}
	return ring, nil
}

// readLog verifies head, entries, keyring and every checkpoint.
func readLog(head []byte, entries [][]byte, root string, read files) (deploymentLog, error) {
	var log deploymentLog
	deployment, _, _ := strings.Cut(string(head), "\n")
	log.rings = map[string]bool{}
	rootKeys := []key{{vkey: strings.TrimSpace(root)}}
	found := false
	for i, e := range entries {
		rest, is := strings.CutPrefix(string(e), deployment+"/keyring\n")
		if !is {
			continue
		}
		lines := strings.Split(rest, "\n")
		edition, err := strconv.Atoi(lines[0])
		if err != nil || len(lines) != 3 {
			return log, wrong(fmt.Sprint("log entry ", i), "no keyring")
		}
		name := fmt.Sprintf("keyring/%06d", edition)
		message, err := read(name)
		if err != nil {
			return log, wrong(name, "%v", err)
		}
		sum := sha256.Sum256(message)
		if base64.StdEncoding.EncodeToString(sum[:]) != lines[1] {
			return log, wrong(name, "not the keyring that log entry %d names", i)
		}
		text, _, err := open(message, rootKeys)
		if err != nil {
			return log, wrong(name, "%v", err)
		}
		ring, err := parseKeyring(text)
		if err != nil || ring.deployment != deployment || ring.edition != edition {
			return log, wrong(name, "another keyring: %v", err)
		}
		log.rings[name] = true
		if found && ring.edition < log.ring.edition {
			return log, wrong(name, "an older keyring after a newer one")
		}
		log.ring, found = ring, true
	}
	if !found {
		return log, wrong("log", "no keyring")
	}
	text, _, err := open(head, log.ring.log)
	if err != nil {
		return log, wrong("log/checkpoint", "%v", err)
	}
	said, err := parseCheckpoint(text)
	if err != nil || said.origin != deployment {
		return log, wrong("log/checkpoint", "%v", err)
	}
	if said.size != uint64(len(entries)) || said.root != rootOf(entries) {
		return log, wrong("log/entries", "not those that the head commits to")
	}
	log.size = len(entries)
	return log, readStreams(&log, entries)
}

// readStreams opens the checkpoint of every stream under its writer's key.
func readStreams(log *deploymentLog, entries [][]byte) error {
	log.streams = map[string]map[uint64]checkpoint{}
	for i, e := range entries {
		place := fmt.Sprint("log entry ", i)
		origin, _, _ := strings.Cut(string(e), "\n")
		if origin == log.ring.deployment+"/keyring" {
			continue
		}
		stream, is := strings.CutPrefix(origin, log.ring.deployment+"/")
		writer, _, both := strings.Cut(stream, "/")
		if !is || !both {
			return wrong(place, "it names no stream")
		}
		var keys []key
		for _, k := range log.ring.writers {
			if k.name == writer {
				keys = append(keys, k)
			}
		}
		text, k, err := open(e, keys)
		if err != nil {
			return wrong(place, "%v", err)
		}
		c, err := parseCheckpoint(text)
		if err != nil {
			return wrong(place, "%v", err)
		}
		c.until = k.until
		if log.streams[stream] == nil {
			log.streams[stream] = map[uint64]checkpoint{}
		}
		if known, is := log.streams[stream][c.size]; is && known.root != c.root {
			return wrong(place, "two roots at one size")
		}
		log.streams[stream][c.size] = c
	}
	return nil
}
