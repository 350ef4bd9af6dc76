// A referee for what witnesses say: judges Custody's notes and proofs with the Go libraries of the
// transparency.dev project, which share no code with the product nor with the second verifier.
//
//	referee cosigned NOTE LOG-VKEY WITNESS-VKEY     the note opens under both keys
//	referee grown OLD-NOTE SUBMISSION               the submission's proof leads from one to the other
//
// Exit codes: 0 yes, 1 no, 64 wrong usage.
package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	formats "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 5 && os.Args[1] == "cosigned":
		err = cosigned(os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 4 && os.Args[1] == "grown":
		err = grown(os.Args[2], os.Args[3])
	default:
		fmt.Fprintln(os.Stderr, "referee cosigned NOTE LOG WITNESS | grown OLD-NOTE SUBMISSION")
		os.Exit(64)
	}
	if err != nil {
		fmt.Println("NO", err)
		os.Exit(1)
	}
	fmt.Println("YES")
}

func cosigned(path, log, witness string) error {
	message, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	ofLog, err := note.NewVerifier(log)
	if err != nil {
		return err
	}
	ofWitness, err := formats.NewVerifierForCosignatureV1(witness)
	if err != nil {
		return err
	}
	opened, err := note.Open(message, note.VerifierList(ofLog, ofWitness))
	if err != nil {
		return err
	}
	if len(opened.Sigs) != 2 {
		return fmt.Errorf("%d of 2 have signed", len(opened.Sigs))
	}
	at, err := formats.CoSigV1Timestamp(opened.Sigs[1])
	fmt.Println("cosigned at", at.UTC())
	return err
}

type head struct {
	size uint64
	root []byte
}

func parse(text string) (head, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 3 {
		return head{}, errors.New("no checkpoint")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return head{}, err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	return head{size, root}, err
}

func grown(old, submission string) error {
	before, err := os.ReadFile(old)
	if err != nil {
		return err
	}
	from, err := parse(string(before))
	if err != nil {
		return err
	}
	body, err := os.ReadFile(submission)
	if err != nil {
		return err
	}
	begin, after, _ := strings.Cut(string(body), "\n\n")
	to, err := parse(after)
	if err != nil {
		return err
	}
	lines := strings.Split(begin, "\n")
	if lines[0] != fmt.Sprint("old ", from.size) {
		return fmt.Errorf("%q", lines[0])
	}
	var hashes [][]byte
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return err
		}
		hashes = append(hashes, hash)
	}
	return proof.VerifyConsistency(rfc6962.DefaultHasher, from.size, to.size, hashes, from.root, to.root)
}
