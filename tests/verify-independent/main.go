// A second verifier of Custody's evidence, written from docs/formats.md alone. It shares no code
// with the product: notes and tree hashes are those of the Go project (golang.org/x/mod/sumdb).
//
//	verify-independent [-root VKEY] [-policy FILE] FILE.evidence
//	verify-independent [-root VKEY] [-policy FILE] -seal DIR
//
// Exit codes: 0 valid, 1 invalid, 3 incomplete, 64 wrong usage.
package main

import (
	"flag"
	"fmt"
	"os"
)

// A problem is something that is not as it was signed.
type problem struct{ place, text string }

func (p problem) Error() string { return p.place + ": " + p.text }

func wrong(place, format string, values ...any) error {
	return problem{place, fmt.Sprintf(format, values...)}
}

func main() {
	root := flag.String("root", "", "the root's public key, as the auditor keeps it")
	seal := flag.String("seal", "", "a lake's folder seal")
	policyFile := flag.String("policy", "", "whose cosignatures are asked for (C2SP tlog-policy)")
	flag.Parse()
	var complete bool
	policy, err := readPolicy(*policyFile)
	switch {
	case err != nil:
	case *seal != "" && flag.NArg() == 0:
		complete, err = checkSeal(*seal, *root, policy)
	case *seal == "" && flag.NArg() == 1:
		complete, err = checkPackage(flag.Arg(0), *root, policy)
	default:
		flag.Usage()
		os.Exit(64)
	}
	switch {
	case err != nil:
		fmt.Println("INVALID", err)
		os.Exit(1)
	case !complete:
		fmt.Println("INCOMPLETE")
		os.Exit(3)
	}
	fmt.Println("VALID")
}
