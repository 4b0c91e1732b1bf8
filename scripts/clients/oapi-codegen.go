package main

import (
	"context"
	"log"
	"os"
	"reflect"
	"regexp"
	"time"
)

var phone = os.Getenv("PHONE")

func main() {
	// Of the right form, and no phone's.
	const unusable = "+7999000"

	background := context.Background()
	client, err := NewClientWithResponses(os.Getenv("MESSAGER_URL"))
	check(err, nil)
	started, err := client.StartVerificationWithResponse(background, nil, Start{Phone: phone})
	check(err, nil)
	check(started.StatusCode(), 202)
	check(started.JSON202.Status, "pending")
	id := started.JSON202.Id
	right := code()
	wrong := "000000"
	if right == wrong {
		wrong = "000001"
	}
	first, err := client.CheckCodeWithResponse(background, id, nil, Check{Code: wrong})
	check(err, nil)
	four := 4
	check(*first.JSON200, Checked{Valid: false, Status: "pending", AttemptsLeft: &four})
	second, err := client.CheckCodeWithResponse(background, id, nil, Check{Code: right})
	check(err, nil)
	check(*second.JSON200, Checked{Valid: true, Status: "approved"})
	byPhone, err := client.CheckCodeByPhoneWithResponse(
		background, nil, CheckByPhone{Phone: phone, Code: wrong})
	check(err, nil)
	check(*byPhone.JSON200, CheckedByPhone{Valid: false})
	found, err := client.GetVerificationWithResponse(background, id)
	check(err, nil)
	check(found.JSON200.Status, "approved")
	approved := false
	for _, event := range found.JSON200.Events {
		approved = approved || event.Type == "approved"
	}
	check(approved, true)

	refused, err := client.StartVerificationWithResponse(background, nil, Start{Phone: unusable})
	check(err, nil)
	problem := refused.ApplicationproblemJSON422
	check(problem.Code, "invalid")
	check(*(*problem.Errors)[0].Pointer, "/phone")
	unknown, err := client.GetVerificationWithResponse(background, "ver_0")
	check(err, nil)
	check(unknown.ApplicationproblemJSON404.Code, "not-found")
}

// What the console shows of the SMS, when it does.
func code() string {
	line := regexp.MustCompile(`(?m)^SMS to ` + phone[1:] + `: Your code: (\d+)$`)
	for tries := 0; tries < 300; tries++ {
		shown, err := os.ReadFile(os.Getenv("MESSAGER_OUT"))
		check(err, nil)
		if found := line.FindSubmatch(shown); found != nil {
			return string(found[1])
		}
		time.Sleep(100 * time.Millisecond)
	}
	log.Fatal("no SMS was shown")
	return ""
}

func check(found, expected any) {
	if !reflect.DeepEqual(found, expected) {
		log.Fatalf("%v is not %v", found, expected)
	}
}
