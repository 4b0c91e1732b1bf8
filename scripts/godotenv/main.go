// Records what godotenv, the parser of the Go service, makes of the cases in
// bootstrap/src/environment/cases.json. Run it here after you add a case.
//
//	go run . ../../bootstrap/src/environment/cases.json
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"

	"github.com/joho/godotenv"
)

// A Case is a .env file and its meaning.
type Case struct {
	// What the case is about.
	About string `json:"about"`
	File  string `json:"file"`
	// What godotenv makes of the file; null: it refuses the file.
	Godotenv map[string]string `json:"godotenv"`
	// What Messager makes of the file, if that is something else.
	Messager map[string]string `json:"messager,omitempty"`
	// Messager refuses a line of the file, although godotenv takes it.
	Refused bool `json:"refused,omitempty"`
	// The reason for either.
	Because string `json:"because,omitempty"`
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var cases []Case
	if err := json.Unmarshal(text, &cases); err != nil {
		log.Fatal(err)
	}
	for i := range cases {
		cases[i].Godotenv, err = godotenv.Unmarshal(cases[i].File)
		if err != nil {
			cases[i].Godotenv = nil
		}
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(cases); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(os.Args[1], out.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
}
